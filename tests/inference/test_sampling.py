"""Sampling: the reference's warpers, and draws that follow the probabilities they leave, row by row."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from spark_jax.inference.sampling import Sampling, choose, draw_noise, top_k_by_groups, warp

GOLDEN = load_file(Path(__file__).parents[1] / "assets" / "qwen2" / "golden.safetensors")


def rows(count, temperature=0.8, top_p=0.95, top_k=50, greedy=False):
    """The same values for all rows."""
    return Sampling(
        jnp.full(count, temperature), jnp.full(count, top_p), jnp.full(count, top_k, jnp.int32), jnp.full(count, greedy)
    )


def noise(count, most=128, first=0):
    """Of seeds from `first` on, at step 3."""
    return draw_noise(jnp.arange(first, first + count, dtype=jnp.uint32), jnp.full(count, 3), most)


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
    count = 20_000
    draws = jax.jit(choose)(rows(count), jnp.repeat(logits, count, axis=0), noise(count, 50))
    frequencies = np.bincount(draws, minlength=logits.shape[1]) / count
    assert not np.any(frequencies[GOLDEN["warp_flat/kept"][0] == 0])
    np.testing.assert_allclose(frequencies, GOLDEN["warp_flat/probs"][0], atol=0.01)


def test_the_likeliest_is_left_or_taken():
    logits = jnp.asarray(GOLDEN["warp/in"])
    expected = jnp.argmax(logits, axis=-1).tolist()
    for values in ({"top_p": 1e-6}, {"top_k": 1, "temperature": 5.0}, {"greedy": True, "temperature": 50.0}):
        assert choose(rows(2, **values), logits, noise(2)).tolist() == expected


def test_masked_tokens_are_never_chosen():
    logits = jnp.full((200, 64), -jnp.inf).at[:, 7].set(-50.0).at[:, 9].set(-50.0)
    assert set(choose(rows(200, temperature=3.0), logits, noise(200)).tolist()) == {7, 9}
    assert set(choose(rows(200, greedy=True), logits, noise(200)).tolist()) == {7}


def test_a_row_draws_by_its_own_values_whatever_the_others_and_the_largest_top_k():
    logits = jax.random.normal(jax.random.key(2), (6, 300)) * 2
    values = [(0.8, 0.95, 50, False), (1.3, 1.0, 5, False), (20.0, 0.5, 128, False), (0.1, 1.0, 1, False)]
    values += [(0.8, 0.95, 50, True), (5.0, 0.99, 64, False)]
    mixed = Sampling(*(jnp.array(column) for column in zip(*values, strict=True)))
    draw = jax.jit(choose)
    together = draw(mixed, logits, noise(6)).tolist()
    programs = set()
    for row, own in enumerate(values):
        for most in (128, 256):
            assert draw(rows(6, *own), logits, noise(6, most))[row] == together[row]
        programs.add(draw._cache_size())
    assert len(programs) == 1  # other values compile nothing


def test_noise_is_of_its_seed_and_step():
    seeds, steps = jnp.array([7, 7, 2**32 - 1], jnp.uint32), jnp.array([[0] * 3, [1] * 3])
    found = draw_noise(seeds, steps, 5)
    assert found.shape == (2, 3, 5)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    assert len({tuple(row) for row in found[:, 1:].reshape(-1, 5).tolist()}) == 4
    np.testing.assert_array_equal(draw_noise(seeds[2:], steps[1, 2:], 9)[0, :5], found[1, 2])


@pytest.mark.parametrize("columns", [2561, 4000])
def test_the_largest_by_groups_are_the_largest(columns):
    """Of equals those with the lowest ids, in rows of few values and of fewer finite ones than are asked for, too."""
    rng = np.random.default_rng(0)
    values = rng.integers(40, size=(60, columns)).astype(np.float32)
    values[20:40] = np.where(rng.random((20, columns)) < 0.01, values[20:40], -np.inf)
    values[40:50] = rng.normal(size=(10, columns))
    values[50], values[51, 3:], values[52, :-2] = -np.inf, -np.inf, -np.inf
    found = jax.jit(top_k_by_groups, static_argnums=1)(values, 80)
    for ours, expected in zip(found, jax.lax.top_k(values, 80), strict=True):
        np.testing.assert_array_equal(ours, expected)
