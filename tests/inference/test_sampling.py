"""Sampling: the reference's warpers, and draws that follow the probabilities they leave."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from spark_jax.inference.sampling import Greedy, Sampling, choose, warp

GOLDEN = load_file(Path(__file__).parents[1] / "assets" / "qwen2" / "golden.safetensors")


@pytest.mark.parametrize("name", ["warp", "warp_flat"])
def test_warped_probabilities_equal_the_golden(name):
    logits = jnp.asarray(GOLDEN[f"{name}/in"])
    scores, ids = jax.jit(warp)(logits, Sampling(temperature=0.8, top_k=50, top_p=0.95))
    probabilities = np.zeros(logits.shape, np.float32)
    np.put_along_axis(probabilities, np.asarray(ids), np.asarray(jax.nn.softmax(scores, axis=-1)), axis=-1)
    np.testing.assert_array_equal(probabilities > 0, GOLDEN[f"{name}/kept"] == 1)
    np.testing.assert_allclose(probabilities, GOLDEN[f"{name}/probs"], atol=1e-6)


def test_draws_follow_the_probabilities_of_the_golden():
    logits = jnp.asarray(GOLDEN["warp_flat/in"][:1])
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.jit(choose)(Sampling(), jnp.repeat(logits, len(keys), axis=0), keys)
    frequencies = np.bincount(draws, minlength=logits.shape[1]) / len(keys)
    assert not np.any(frequencies[GOLDEN["warp_flat/kept"][0] == 0])
    np.testing.assert_allclose(frequencies, GOLDEN["warp_flat/probs"][0], atol=0.01)


def test_a_small_top_p_leaves_the_likeliest():
    logits = jnp.asarray(GOLDEN["warp/in"])
    keys = jax.random.split(jax.random.key(0), 2)
    expected = jnp.argmax(logits, axis=-1).tolist()
    assert choose(Sampling(top_p=1e-6), logits, keys).tolist() == expected
    assert choose(Sampling(top_k=1, temperature=5.0), logits, keys).tolist() == expected
    assert choose(Greedy(), logits, keys).tolist() == expected


def test_masked_tokens_are_never_chosen():
    logits = jnp.full((200, 64), -jnp.inf).at[:, 7].set(-50.0).at[:, 9].set(-50.0)
    keys = jax.random.split(jax.random.key(1), 200)
    assert set(choose(Sampling(temperature=3.0), logits, keys).tolist()) == {7, 9}
    assert set(choose(Greedy(), logits, keys).tolist()) == {7}


def test_new_values_compile_nothing():
    logits, keys = jnp.asarray(GOLDEN["warp/in"]), jax.random.split(jax.random.key(0), 2)
    compiled = jax.jit(lambda *arguments: choose(*arguments))
    for temperature, top_p in ((0.8, 0.95), (1.3, 0.5), (0.1, 1.0)):
        compiled(Sampling(temperature=temperature, top_p=top_p), logits, keys)
    assert compiled._cache_size() == 1
