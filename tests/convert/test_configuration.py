"""transformers' configuration files of the LLM, of both ages; what is not supported is named."""

import dataclasses
import json

import pytest

from spark_jax.config import Qwen2Config, Wav2Vec2Config
from spark_jax.convert.configuration import (
    read_llm_config,
    read_wav2vec2_config,
    write_llm_config,
    write_wav2vec2_config,
)
from spark_jax.errors import SparkError

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 112,
    "max_position_embeddings": 1024,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
EXPECTED = Qwen2Config(512, 64, 3, 4, 2, 112, 1024)
QWEN3 = {"model_type": "qwen3", "attention_bias": False, "head_dim": 24}


@pytest.fixture
def read(tmp_path):
    def read(*without, **changes):
        content = {key: value for key, value in (QWEN2 | changes).items() if key not in without}
        (tmp_path / "config.json").write_text(json.dumps(content))
        return read_llm_config(tmp_path / "config.json")

    return read


def test_qwen2(read):
    assert read() == EXPECTED
    assert read(head_dim=None) == EXPECTED and read(head_dim=16) == EXPECTED
    assert read(head_dim=24) == dataclasses.replace(EXPECTED, head_dim=24)
    assert read(tie_word_embeddings=False) == dataclasses.replace(EXPECTED, tie_word_embeddings=False)
    assert read("tie_word_embeddings").tie_word_embeddings is False  # transformers' default


def test_qwen3(read):
    expected = dataclasses.replace(EXPECTED, head_dim=24, attention_bias=False, qk_norm=True)
    assert read(**QWEN3) == expected
    assert read("head_dim", "attention_bias", model_type="qwen3").head_dim == 128  # transformers' default


def test_rotary_positions_of_transformers_4_and_5(read):
    assert read(rope_scaling=None).rope_theta == 1e6
    assert read("rope_theta", rope_parameters={"rope_type": "default", "rope_theta": 1e4}).rope_theta == 1e4
    assert read(rope_scaling={"rope_type": "default"}).rope_theta == 1e6


def test_a_sliding_window_that_no_layer_uses(read):
    assert read(use_sliding_window=False, sliding_window=32, max_window_layers=1) == EXPECTED
    assert read(use_sliding_window=True, sliding_window=32, max_window_layers=3) == EXPECTED
    assert read(use_sliding_window=True, sliding_window=None) == EXPECTED
    assert read(layer_types=["full_attention"] * 3) == EXPECTED


@pytest.mark.parametrize(
    ("without", "changes", "message"),
    [
        ((), {"model_type": "llama"}, "model_type is 'llama', expected one of qwen2, qwen3"),
        (("model_type",), {}, "model_type is None"),
        ((), {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ((), {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling: rope_type is 'yarn'"),
        ((), {"rope_scaling": "yarn"}, "rope_scaling is 'yarn', expected a mapping"),
        ((), {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: rope_type is 'linear'"),
        ((), {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters: partial_rotary_factor is not"),
        (("rope_theta",), {}, "rope_theta missing"),
        ((), {"rope_theta": "much"}, "rope_theta"),
        ((), {"rope_theta": float("nan")}, "rope_theta is nan"),
        ((), {"use_sliding_window": True, "max_window_layers": 2}, "sliding-window attention"),
        ((), {"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention"),
        ((), {"layer_types": 5}, "sliding-window attention"),
        ((), {"quantization_config": {"quant_method": "gptq"}}, "the weights are quantized by gptq"),
        ((), {"attention_bias": True} | {"model_type": "qwen3"}, "attention_bias is True; only False"),
        ((), {"num_key_value_heads": 3}, "num_attention_heads is 4, expected a multiple of num_key_value_heads, 3"),
        ((), {"hidden_size": 65}, "hidden_size is no multiple"),
        ((), {"num_hidden_layers": 0}, "num_hidden_layers is 0, expected sizes of at least 1"),
        ((), {"num_attention_heads": True}, "num_attention_heads is True"),
        ((), {"vocab_size": 10.5}, "vocab_size"),
        ((), {"vocab_size": None}, "vocab_size"),
        (("intermediate_size",), {}, "intermediate_size missing"),
        ((), {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_what_is_not_supported_is_named(read, without, changes, message):
    with pytest.raises(SparkError) as caught:
        read(*without, **changes)
    assert "config.json" in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, QWEN3, {"head_dim": 24}])
def test_written_configurations_read_the_same(read, tmp_path, changes):
    config = read(**changes)
    write_llm_config(tmp_path, config, "bfloat16", end=5, padding=3)
    assert read_llm_config(tmp_path / "config.json") == config
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == [f"{written['model_type'].capitalize()}ForCausalLM"]
    assert (written["torch_dtype"], written["eos_token_id"], written["pad_token_id"]) == ("bfloat16", 5, 3)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["temperature"], generation["top_k"]) == (5, 0.8, 50)


@pytest.mark.parametrize("value", [None, 5, "11", {"a": 1}, ["a"], [1.5]])
def test_taps_that_are_no_list_of_layers(tmp_path, value):
    write_wav2vec2_config(tmp_path, Wav2Vec2Config(), 16_000)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"feature_layers": value}))
    with pytest.raises(SparkError, match="config.json: .*feature_layers"):
        read_wav2vec2_config(tmp_path)
