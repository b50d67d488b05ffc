"""Parity of the decoder with the reference's goldens; the cache against the uncached forward."""

import dataclasses
import importlib.util
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spark_jax.qwen2.cache import init_cache
from spark_jax.qwen2.model import Qwen2

spec = importlib.util.spec_from_file_location("qwen2_reference", Path(__file__).parent / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

CONFIG, PARAMS, GOLDEN = reference.load()
MODEL = Qwen2(CONFIG)


@jax.jit
def forward(params, ids, **options):
    hidden, cache = MODEL.apply({"params": params}, ids, **options)
    return hidden, MODEL.apply({"params": params}, hidden, method=Qwen2.logits), cache


def assert_close(ours, golden, relative=1e-5):
    np.testing.assert_allclose(ours, golden, rtol=0, atol=relative * np.abs(golden).max())


def test_parameters_are_the_documented_tree():
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    assert jax.tree.map(jnp.shape, nn.meta.unbox(shapes)) == jax.tree.map(jnp.shape, PARAMS)
    axes = nn.get_partition_spec(shapes)
    assert axes["layers"]["attention"]["query"]["kernel"] == jax.P("layers", "embed", "heads", "head_dim")
    assert axes["layers"]["attention"]["key"]["bias"] == jax.P("layers", "kv_heads", "head_dim")
    assert axes["embed"]["embedding"] == jax.P("vocab", "embed")


def test_logits_and_hidden_states_equal_the_golden():
    ids = GOLDEN["in/input_ids"]
    hidden, state = jax.jit(partial(MODEL.apply, capture_intermediates=True))({"params": PARAMS}, ids)
    captured = state["intermediates"]
    assert_close(captured["embed"]["__call__"][0], GOLDEN["hs0"])
    layer_outputs = captured["layers"]["__call__"][0][0][0]  # [layers, batch, time, dim]
    assert_close(layer_outputs[0], GOLDEN["hs1"])
    assert_close(hidden[0], GOLDEN["hs2"])
    assert_close(forward(PARAMS, ids)[1], GOLDEN["logits"])


def test_left_padding_equals_the_golden():
    mask = GOLDEN["leftpad/attention_mask"]
    positions = GOLDEN["leftpad/position_ids"]
    _, logits, _ = forward(PARAMS, GOLDEN["leftpad/input_ids"], positions=positions, segment_ids=mask)
    assert_close(logits[mask == 1], GOLDEN["leftpad/logits"][mask == 1])


def test_greedy_decoding_through_the_cache_equals_the_golden():
    prompt = jnp.asarray(GOLDEN["in/input_ids"][:1])
    _, logits, cache = forward(PARAMS, prompt, cache=init_cache(CONFIG, 1, prompt.shape[1] + 24))
    ids, rows = [], []
    for _ in range(24):
        rows.append(logits[0, -1])
        ids.append(int(jnp.argmax(rows[-1])))
        _, logits, cache = forward(PARAMS, jnp.array([[ids[-1]]]), cache=cache)
    assert ids == GOLDEN["greedy/new_ids"].tolist()
    assert_close(np.stack(rows), GOLDEN["greedy/logits"])
    assert cache.lengths.tolist() == [prompt.shape[1] + 24]


def test_training_loss_and_gradients_equal_the_golden():
    labels = jnp.asarray(GOLDEN["train/labels"])

    @jax.jit
    def loss(params):
        logits = forward(params, GOLDEN["in/input_ids"])[1][:, :-1]
        kept = labels[:, 1:] != -100
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels[:, 1:], 0))
        return jnp.sum(losses * kept) / jnp.sum(kept)

    value, gradients = jax.value_and_grad(loss)(PARAMS)
    assert_close(value, GOLDEN["train/loss"])
    prefix = "train/grad/"
    golden = {name.removeprefix(prefix): g for name, g in GOLDEN.items() if name.startswith(prefix)}
    first_layer = {**gradients, "layers": jax.tree.map(lambda g: g[:1], gradients["layers"])}
    jax.tree.map(assert_close, first_layer, reference.to_tree(golden, CONFIG, layers=1))


def test_right_padded_batch_with_cache_equals_single_items():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, CONFIG.vocab_size, length) for length in (3, 7, 5)]
    padded, segments = np.zeros((3, 8), np.int32), np.zeros((3, 8), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 1
    following = rng.integers(2, CONFIG.vocab_size, (3, 2))
    hidden, _, cache = forward(PARAMS, padded, segment_ids=segments, cache=init_cache(CONFIG, 3, 10))
    assert cache.lengths.tolist() == [3, 7, 5]
    batched = []
    for time in range(2):
        batched.append(forward(PARAMS, following[:, time : time + 1], cache=cache))
        cache = batched[-1][2]
    for row, prompt in enumerate(prompts):
        alone, _, _ = forward(PARAMS, np.concatenate([prompt, following[row]])[None])
        assert_close(hidden[row, : len(prompt)], alone[0, : len(prompt)])
        for time in range(2):
            assert_close(batched[time][0][row, 0], alone[0, len(prompt) + time])


def test_packed_segments_equal_single_items():
    ids = GOLDEN["in/input_ids"]
    packed, segments = ids.reshape(1, -1), np.repeat([[1, 2]], ids.shape[1], axis=1)
    _, logits, _ = forward(PARAMS, packed, segment_ids=segments)
    assert_close(logits.reshape(2, ids.shape[1], -1), GOLDEN["logits"])


@pytest.mark.extended
def test_untied_head_and_bfloat16():
    config = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    untied = {**PARAMS, "head": PARAMS["embed"]["embedding"].T}
    hidden, _ = Qwen2(config).apply({"params": untied}, GOLDEN["in/input_ids"])
    logits = Qwen2(config).apply({"params": untied}, hidden, method=Qwen2.logits)
    assert_close(logits, GOLDEN["logits"])
    half = Qwen2(CONFIG, dtype=jnp.bfloat16)
    hidden, _ = half.apply({"params": PARAMS}, GOLDEN["in/input_ids"])
    assert hidden.dtype == jnp.bfloat16
    logits = half.apply({"params": PARAMS}, hidden, method=Qwen2.logits)
    assert logits.dtype == jnp.float32
    assert_close(logits, GOLDEN["logits"], relative=3e-2)


@pytest.mark.parametrize("capacity", [11, 40])
def test_cache_capacity_never_changes_a_result(capacity):
    ids = GOLDEN["in/input_ids"]
    _, logits, _ = forward(PARAMS, ids, cache=init_cache(CONFIG, 2, capacity))
    assert_close(logits, GOLDEN["logits"])
