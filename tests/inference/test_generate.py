"""Generation: greedy as the golden, one program for a bucket, answers that depend on nothing but their request."""

import importlib.util
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.inference.generate import Generator, decode, prefill
from spark_jax.inference.sampling import Greedy, Sampling
from spark_jax.qwen2.model import Qwen2
from spark_jax.text.grammar import Grammar
from spark_jax.text.prompt import cloning_prompt, creation_prompt
from spark_jax.text.tokenizer import build_tokenizer

spec = importlib.util.spec_from_file_location("qwen2_reference", Path(__file__).parents[1] / "qwen2" / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

TOKENIZER = build_tokenizer("bytes", semantic_codes=64, global_codes=64)
MODEL = Qwen2(tiny().llm)
GLOBAL = [5, 60, 0, 33]
FLAT = Sampling(temperature=20.0, top_p=0.999)


@pytest.fixture(scope="module")
def params():
    made = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    # At the usual scale random logits are so flat that every prompt gets the same answer.
    return jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim > 2 else leaf, nn.meta.unbox(made)["params"])


@pytest.fixture(scope="module")
def generator(params):
    return Generator(
        MODEL, params, TOKENIZER, 4, max_semantic_tokens=3000, prompt_buckets=(48, 96), output_buckets=(16, 64)
    )


def clone(text):
    return cloning_prompt(TOKENIZER, text, GLOBAL)


def create(text):
    return creation_prompt(TOKENIZER, text, gender=1, pitch_level=2, speed_level=3)


def answer(generation):
    return generation.semantic_ids.tolist(), generation.global_ids.tolist(), generation.pitch_value


def test_greedy_equals_the_golden():
    golden_config, golden_params, golden = reference.load()
    prompt = golden["in/input_ids"][:1]
    everything = Grammar(
        jnp.ones((1, golden_config.vocab_size), bool), jnp.zeros(2, jnp.int32), jnp.int32(-1), ("semantic", "done")
    )
    model = Qwen2(golden_config)
    padded = np.pad(prompt, ((0, 0), (0, 5)))
    state = jax.jit(prefill, static_argnums=(0, 9))(
        model,
        golden_params,
        padded,
        jnp.array([prompt.shape[1]]),
        jnp.array([0]),
        jnp.array([24]),
        jax.random.split(jax.random.key(0), 1),
        everything,
        Greedy(),
        24,
    )
    state = jax.jit(decode, static_argnums=0)(model, golden_params, state, everything, Greedy())
    assert state.tokens[0].tolist() == golden["greedy/new_ids"].tolist()


def test_answers_have_the_form_of_their_prompt(generator):
    cloned, made = generator.generate([clone("One."), create("Two.")], [1, 2], FLAT, max_new_tokens=40)
    assert cloned.global_ids.tolist() == GLOBAL and cloned.pitch_value is None
    assert made.global_ids.shape == (4,) and 0 <= made.pitch_value <= 1000 and 0 <= made.speed_value <= 10
    for generation, control_tokens in ((cloned, 1), (made, 11)):
        end = 0 if generation.reached_limit else 1
        assert len(generation.semantic_ids) >= 1
        assert generation.semantic_ids.min() >= 0 and generation.semantic_ids.max() < 64
        assert generation.new_tokens == control_tokens + len(generation.semantic_ids) + end <= 40


def test_an_answer_depends_on_its_own_request_only(generator, params):
    prompts = [clone("A short one."), create("Another."), clone("A text that is quite a bit longer than the rest")]
    together = generator.generate(prompts, [7, 8, 9], FLAT, max_new_tokens=50)
    assert len({str(answer(generation)) for generation in together}) == 3
    wide = Generator(MODEL, params, TOKENIZER, 4, max_semantic_tokens=3000, prompt_buckets=(128,), output_buckets=(80,))
    for index, prompt in enumerate(prompts):
        for other in (generator, wide):
            (alone,) = other.generate([prompt], [7 + index], FLAT, max_new_tokens=50)
            assert answer(alone) == answer(together[index])
            assert alone.new_tokens == together[index].new_tokens
    (again,) = generator.generate(prompts[:1], [10], FLAT, max_new_tokens=50)
    assert answer(again) != answer(together[0])


def test_two_texts_in_a_bucket_compile_once(params):
    fresh = Generator(
        MODEL, params, TOKENIZER, 4, max_semantic_tokens=3000, prompt_buckets=(48, 96), output_buckets=(64,)
    )
    fresh.generate([clone("The first text.")], [1], Sampling(), max_new_tokens=30)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if "backend_compile" in event else None
    )
    fresh.generate([clone("A second one")], [2], Sampling(temperature=0.5, top_p=0.8), max_new_tokens=20)
    assert compilations == []
    assert fresh._prefill._cache_size() == fresh._decode._cache_size() == 1
    fresh.generate([clone("This text is too long for the first bucket of prompts.")], [2], max_new_tokens=20)
    assert fresh._prefill._cache_size() == fresh._decode._cache_size() == 2


def test_the_end_is_told_from_the_limit(params):
    # With a zero norm all logits are equal, so greedy takes the lowest id: <|im_end|>, as soon as it may.
    eager = {**params, "norm": {"scale": jnp.zeros_like(params["norm"]["scale"])}}
    stops = Generator(MODEL, eager, TOKENIZER, 4, max_semantic_tokens=3000, prompt_buckets=(64,), output_buckets=(64,))
    (ended,) = stops.generate([clone("Stop.")], [0], Greedy())
    assert (len(ended.semantic_ids), ended.reached_limit, ended.new_tokens) == (1, False, 3)
    limit = stops.new_tokens(clone("Stop."), 1)
    assert limit == 3
    (cut,) = stops.generate([clone("Stop.")], [0], Greedy(), max_new_tokens=limit - 1)
    assert (len(cut.semantic_ids), cut.reached_limit, cut.new_tokens) == (1, True, 2)
    assert stops.room(clone("Stop.")) == 62


@pytest.mark.extended
def test_rows_divided_over_devices_answer_as_on_one(generator, params):
    """Three prompts fill the four shards of a mesh, on which heads are divided, too."""
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    placed = jax.device_put(params, sharding.tree_shardings(mesh, boxed)["params"])
    divided = Generator(MODEL, placed, TOKENIZER, 4, max_semantic_tokens=30, mesh=mesh)
    prompts = [clone("A short one."), create("Another."), clone("A third of them")]
    found = divided.generate(prompts, [7, 8, 2**32 - 1], FLAT)
    limits = [generator.new_tokens(prompt, 30) for prompt in prompts]
    expected = generator.generate(prompts, [7, 8, 2**32 - 1], FLAT, limits)
    assert [answer(generation) for generation in found] == [answer(generation) for generation in expected]
    assert max(len(generation.semantic_ids) for generation in found) <= 31  # with what stands for a missing end


def test_bad_input_is_named(generator):
    with pytest.raises(SparkError, match="the prompt has 1.. tokens, expected at most 96"):
        generator.generate([clone("x" * 100)], [0])
    with pytest.raises(SparkError, match="max_new_tokens is 3, expected at least 12"):
        generator.generate([create("Hello")], [0], max_new_tokens=3)
    with pytest.raises(SparkError, match="2 prompts and 1 seeds"):
        generator.generate([clone("a"), clone("b")], [0])
    assert generator.room(clone("x" * 100)) == 0
