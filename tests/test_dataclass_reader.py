"""Numbers of numpy, JAX and others are numbers in every configuration and request; booleans are not."""

import dataclasses
import decimal
import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax.config import Qwen2Config, SamplingConfig, SparkConfig, WaveGeneratorConfig, from_mapping, to_mapping
from spark_jax.data.config import AudioDataConfig, CodecDataConfig, TokenDataConfig
from spark_jax.dataclass_reader import plain_data, plain_number
from spark_jax.errors import SparkError
from spark_jax.inference.request import Request
from spark_jax.training.llm.config import LLMTrainingConfig

INTEGERS = [np.int64, np.int32, np.uint8, np.int16, np.array, jnp.int32]
FLOATS = [np.float32, np.float64, np.float16, np.array, jnp.float32, jnp.bfloat16]


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_in_requests(kind):
    request = Request(text="a", seed=kind(3), top_k=kind(5), temperature=kind(1), max_seconds=kind(2))
    assert request == Request(text="a", seed=3, top_k=5, temperature=1, max_seconds=2)
    assert type(request.seed) is int and type(request.top_k) is int
    with pytest.raises(SparkError, match="top_k is 0, expected a whole number from 1"):
        Request(text="a", top_k=kind(0))


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_in_requests(kind):
    numbers = dict.fromkeys(("temperature", "top_p", "max_seconds", "pitch_hz", "syllables_per_second"), kind(0.5))
    request = Request(text="a", **numbers)
    assert request == Request(text="a", **dict.fromkeys(numbers, 0.5)) and type(request.top_p) is float
    for bad in (kind(-1.0), kind(float("nan")), kind(float("inf"))):
        with pytest.raises(SparkError, match="temperature is "):
            Request(text="a", temperature=bad)


@pytest.mark.parametrize("value", [True, np.True_, np.array(True), jnp.array(True)])
@pytest.mark.parametrize("name", ["seed", "top_k", "temperature", "top_p", "max_seconds"])
def test_booleans_are_no_numbers_in_requests(name, value):
    with pytest.raises(SparkError, match=f"{name} is True, expected a"):
        Request(text="a", **{name: value})


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_in_configurations(kind):
    made = Qwen2Config(hidden_size=kind(64), num_attention_heads=kind(4), num_key_value_heads=kind(2))
    assert made == Qwen2Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    assert hash(made) == hash(Qwen2Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2))
    assert type(made.hidden_size) is int and type(made.head_dim) is int
    read = from_mapping(Qwen2Config, {"hidden_size": kind(64), "rope_theta": kind(100)}, "here")
    assert read == Qwen2Config(hidden_size=64, rope_theta=100.0) and type(read.rope_theta) is float
    assert json.dumps(to_mapping(read)) and json.dumps(to_mapping(made))
    nested = from_mapping(SparkConfig, {"max_semantic_tokens": kind(7), "llm": {"vocab_size": kind(9)}}, "here")
    assert (nested.max_semantic_tokens, nested.llm.vocab_size) == (7, 9)


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_in_configurations(kind):
    assert SamplingConfig(temperature=kind(0.5)) == SamplingConfig(temperature=0.5)
    assert from_mapping(SamplingConfig, {"top_p": kind(0.5)}, "here") == SamplingConfig(top_p=0.5)
    assert TokenDataConfig(tts_weight=kind(0.5)) == TokenDataConfig(tts_weight=0.5)
    with pytest.raises(SparkError, match="here: .*top_k"):
        from_mapping(SamplingConfig, {"top_k": kind(0.5)}, "here")


def test_numbers_in_tuples():
    for rates in ((np.int64(4), np.int32(2)), np.array([4, 2])):
        assert WaveGeneratorConfig(rates=rates) == WaveGeneratorConfig(rates=(4, 2))
        assert from_mapping(WaveGeneratorConfig, {"rates": rates}, "here").rates == (4, 2)
        assert hash(WaveGeneratorConfig(rates=rates)) == hash(WaveGeneratorConfig(rates=(4, 2)))
    assert AudioDataConfig(bucket_seconds=tuple(np.array([1.0, 2.5]))).bucket_seconds == (1.0, 2.5)
    assert from_mapping(WaveGeneratorConfig, {"rates": [np.int64(4), 2]}, "here").rates == (4, 2)


@pytest.mark.parametrize("value", [True, np.True_, np.array(False)])
def test_booleans_are_no_numbers_in_configurations(value):
    for cls, key in ((Qwen2Config, "hidden_size"), (SamplingConfig, "temperature"), (CodecDataConfig, "threads")):
        with pytest.raises(SparkError, match=f"here: {key} is (True|False), expected a number|here: .*{key}"):
            from_mapping(cls, {key: value}, "here")
    assert from_mapping(SparkConfig, {"volume_normalize": value}, "here").volume_normalize is bool(value)


def test_what_is_no_number_stays():
    for value in (None, "a", 3, 2.5, decimal.Decimal(1), [1], {"a": (1, 2)}, np.array([1.0])):
        assert plain_number(value) is value
    assert plain_data({"a": [np.int64(1), (np.float32(0.5), None)]}) == {"a": [1, (0.5, None)]}
    assert tiny() == from_mapping(SparkConfig, to_mapping(tiny()), "here")
    assert dataclasses.replace(LLMTrainingConfig(), accumulate=np.int64(2)).accumulate == 2
