"""Sampling: the reference's warpers, and draws that follow the probabilities they leave, row by row."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from spark_jax.inference.sampling import Sampling, choose, warp

GOLDEN = load_file(Path(__file__).parents[1] / "assets" / "qwen2" / "golden.safetensors")


def rows(count, temperature=0.8, top_p=0.95, top_k=50, greedy=False):
    """The same values for all rows."""
    return Sampling(
        jnp.full(count, temperature), jnp.full(count, top_p), jnp.full(count, top_k, jnp.int32), jnp.full(count, greedy)
    )


@pytest.mark.parametrize("name", ["warp", "warp_flat"])
@pytest.mark.parametrize("most", [50, 64])
def test_warped_probabilities_equal_the_golden(name, most):
    logits = jnp.asarray(GOLDEN[f"{name}/in"])
    scores, ids = jax.jit(warp, static_argnums=2)(rows(len(logits)), logits, most)
    probabilities = np.zeros(logits.shape, np.float32)
    np.put_along_axis(probabilities, np.asarray(ids), np.asarray(jax.nn.softmax(scores, axis=-1)), axis=-1)
    np.testing.assert_array_equal(probabilities > 0, GOLDEN[f"{name}/kept"] == 1)
    np.testing.assert_allclose(probabilities, GOLDEN[f"{name}/probs"], atol=1e-6)


def test_draws_follow_the_probabilities_of_the_golden():
    logits = jnp.asarray(GOLDEN["warp_flat/in"][:1])
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.jit(choose, static_argnums=3)(rows(len(keys)), jnp.repeat(logits, len(keys), axis=0), keys, 50)
    frequencies = np.bincount(draws, minlength=logits.shape[1]) / len(keys)
    assert not np.any(frequencies[GOLDEN["warp_flat/kept"][0] == 0])
    np.testing.assert_allclose(frequencies, GOLDEN["warp_flat/probs"][0], atol=0.01)


def test_the_likeliest_is_left_or_taken():
    logits = jnp.asarray(GOLDEN["warp/in"])
    keys = jax.random.split(jax.random.key(0), 2)
    expected = jnp.argmax(logits, axis=-1).tolist()
    for values in ({"top_p": 1e-6}, {"top_k": 1, "temperature": 5.0}, {"greedy": True, "temperature": 50.0}):
        assert choose(rows(2, **values), logits, keys, 128).tolist() == expected


def test_masked_tokens_are_never_chosen():
    logits = jnp.full((200, 64), -jnp.inf).at[:, 7].set(-50.0).at[:, 9].set(-50.0)
    keys = jax.random.split(jax.random.key(1), 200)
    assert set(choose(rows(200, temperature=3.0), logits, keys, 128).tolist()) == {7, 9}
    assert set(choose(rows(200, greedy=True), logits, keys, 128).tolist()) == {7}


def test_a_row_draws_by_its_own_values_whatever_the_others_and_the_largest_top_k():
    logits = jax.random.normal(jax.random.key(2), (6, 300)) * 2
    keys = jax.random.split(jax.random.key(3), 6)
    values = [(0.8, 0.95, 50, False), (1.3, 1.0, 5, False), (20.0, 0.5, 128, False), (0.1, 1.0, 1, False)]
    values += [(0.8, 0.95, 50, True), (5.0, 0.99, 64, False)]
    mixed = Sampling(*(jnp.array(column) for column in zip(*values, strict=True)))
    draw = jax.jit(partial(choose), static_argnums=3)
    together = draw(mixed, logits, keys, 128).tolist()
    for row, own in enumerate(values):
        alone = rows(6, *own)
        for most in (128, 256):
            assert draw(alone, logits, keys, most)[row] == together[row]
    assert draw._cache_size() == 2
