"""Attention row by row against the plain one, values and gradients, packed rows and a length no block divides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.nn.attention import causal_mask, grouped_query_attention, rowwise_causal_attention


@pytest.mark.parametrize("block", [4, 7, 64])
def test_rowwise_attention_is_attention(block):
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.normal(size=(3, 18, 4, 8)), jnp.float32)
    key, value = (jnp.asarray(rng.normal(size=(3, 2, 18, 8)), jnp.float32) for _ in range(2))
    segments = jnp.asarray(np.repeat([[1, 2, 0]], 6, axis=1).repeat(3, axis=0).reshape(3, 18))
    mask, weight = causal_mask(segments), jnp.asarray(rng.normal(size=query.shape), jnp.float32)

    def run(attend):
        loss = lambda q, k, v: jnp.sum(attend(q, k, v) * weight)  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1, 2))(query, key, value)

    ours = run(lambda q, k, v: rowwise_causal_attention(q, k, v, mask, block))
    plain = run(lambda q, k, v: grouped_query_attention(q, k, v, mask))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, plain)
