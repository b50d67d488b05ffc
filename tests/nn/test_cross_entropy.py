"""Cross-entropy in chunks against the whole one: values, gradients, ranks; one device and eight; memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spark_jax import sharding
from spark_jax.nn.cross_entropy import (
    HIDDEN_AXES,
    TABLE_AXES,
    TOKEN_AXES,
    chosen_by_gather,
    chosen_by_mask,
    chunked_cross_entropy,
    plain_sums,
    sums_in_one_pass,
)

ROWS, TIME, DIM, VOCAB = 8, 9, 16, 40


def inputs(dtype=jnp.float32):
    """Hidden states, table, targets, and weights that leave tokens out."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(ROWS, TIME, DIM)), dtype)
    table = jnp.asarray(rng.normal(size=(VOCAB, DIM)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, VOCAB, (ROWS, TIME)))
    return hidden, table, targets, jnp.asarray(rng.integers(0, 2, (ROWS, TIME)), jnp.float32)


def whole(hidden, table, targets, weights):
    logits = jnp.einsum("btd,vd->btv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    ranks = jnp.sum(logits > chosen, axis=-1)
    return jnp.sum(losses * weights), jax.tree.map(lambda x: jnp.where(weights == 0, 0, x), (losses, ranks))


def run(loss, hidden, table, targets, weights, factor=3.0):
    """The loss, figures of tokens, and gradients of a multiple of the loss."""

    def scaled(hidden, table):
        value, figures = loss(hidden, table, targets, weights)
        return factor * value, figures

    (value, figures), gradients = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)(hidden, table)
    return value, *jax.tree.leaves(figures), *gradients


def check(found, expected, tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize("chunk", [10, 1000])
def test_chunks_change_nothing(chunk):
    chunked = jax.jit(partial(run, partial(chunked_cross_entropy, chunk=chunk)))
    check(chunked(*inputs()), jax.jit(partial(run, whole))(*inputs()), 1e-6)
    loss, scores = jax.jit(partial(chunked_cross_entropy, chunk=chunk))(*inputs())  # the pass without gradients
    check((loss, scores.losses, scores.ranks), run(whole, *inputs(), factor=1.0)[:3], 1e-6)


def test_gpus_read_logits_once_and_sum_the_same():
    """Very likely and very unlikely targets, ties with the target, and targets of another part of the vocabulary."""
    logits = 30 * np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32)
    logits[0, 3:6], logits[1, 9], logits[2] = 60.0, 200.0, 0.0
    logits, index = jnp.asarray(logits), jnp.array([4, 9, 0, 49, -1, 50, 12])
    chosen = chosen_by_mask(logits, index)
    np.testing.assert_array_equal(chosen_by_gather(logits, index), chosen)
    found, expected = jax.jit(sums_in_one_pass)(logits, chosen), plain_sums(logits, chosen)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[2], expected[2])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    assert expected[2][:3].tolist() == [0, 0, 0] and expected[2][3:].max() > 5


@pytest.mark.parametrize("chunk", [10, 50])
def test_the_form_for_gpus_is_the_same_loss(chunk, monkeypatch):
    choose = lambda *values, cuda, default: cuda(*values)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    chunked = jax.jit(partial(run, partial(chunked_cross_entropy, chunk=chunk)))
    check(chunked(*inputs()), jax.jit(partial(run, whole))(*inputs()), 1e-6)


def test_bfloat16_sums_in_float32():
    found = jax.jit(partial(run, partial(chunked_cross_entropy, chunk=10)))(*inputs(jnp.bfloat16))
    assert [x.dtype for x in found] == [jnp.float32, jnp.float32, jnp.int32, jnp.bfloat16, jnp.float32]
    expected = run(whole, *inputs(jnp.bfloat16))
    check(found[:3], expected[:3], 1e-6)
    check(found[3:], expected[3:], 1e-2)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_the_mesh_changes_nothing(shape):
    """And no device sees another's tokens: what is gathered is the table, what is reduced its gradient, once each."""
    mesh = sharding.make_mesh(*shape)
    layouts = (HIDDEN_AXES, TABLE_AXES, TOKEN_AXES, TOKEN_AXES)
    shardings = tuple(jax.NamedSharding(mesh, sharding.spec(mesh, *axes)) for axes in layouts)
    traced = sharding.under_mesh(partial(run, partial(chunked_cross_entropy, chunk=5)), mesh)
    compiled = jax.jit(traced, in_shardings=shardings).lower(*inputs()).compile()
    found = compiled(*jax.device_put(inputs(), shardings))
    check(found, run(whole, *inputs()), 1e-6)
    assert found[4].sharding.is_equivalent_to(shardings[1], 2) and found[3].sharding.is_equivalent_to(shardings[0], 3)
    text = compiled.as_text()
    assert text.count(" all-gather(") == (shape[1] > 1) and text.count(" reduce-scatter(") == (shape[1] > 1)


@pytest.mark.extended
def test_memory_of_tokens_does_not_grow_with_the_vocabulary():
    """What more tokens take is the same for any vocabulary; [tokens, vocab] would take 15 times more for the larger."""

    def bytes_for(rows, vocab):
        hidden, table = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, 256, 32), (vocab, 32)))
        ids, weights = (jax.ShapeDtypeStruct((rows, 256), dtype) for dtype in (jnp.int32, jnp.float32))
        loss = partial(run, partial(chunked_cross_entropy, chunk=64))
        return jax.jit(loss).lower(hidden, table, ids, weights).compile().memory_analysis().temp_size_in_bytes

    growth = {vocab: bytes_for(16, vocab) - bytes_for(8, vocab) for vocab in (1024, 15 * 1024)}
    assert growth[15 * 1024] <= 1.05 * growth[1024] + 1024
    assert bytes_for(8, 15 * 1024) < 2 * 15 * 1024 * (64 + 32) * 4 + bytes_for(8, 1024)  # a chunk's logits, gradient
