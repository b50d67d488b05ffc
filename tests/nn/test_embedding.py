"""Rows of a divided table are rows of the table, and so are their gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax import sharding
from spark_jax.nn.embedding import Embedding


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_the_mesh_changes_nothing(shape):
    mesh = sharding.make_mesh(*shape)
    model = Embedding(32, 16, nn.initializers.normal(1.0))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 32, (8, 5))
    ids[:, 0] = 3  # one token that all rows have
    weight = rng.normal(size=(8, 5, 16)).astype(np.float32)

    def init():
        return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))

    def run(params, batch):
        rows, pullback = jax.vjp(lambda params: model.apply(params, batch["ids"]), params)
        return rows, pullback(batch["weight"])[0]

    params, shardings = sharding.initialize(mesh, init)
    table = np.asarray(params["params"]["embedding"])
    rows, gradient = jax.jit(sharding.under_mesh(run, mesh), out_shardings=(sharding.batch_sharding(mesh), shardings))(
        params, sharding.put_batch(mesh, {"ids": ids, "weight": weight})
    )
    np.testing.assert_array_equal(rows, table[ids])
    expected = np.zeros_like(table)
    np.add.at(expected, ids, weight)
    np.testing.assert_allclose(gradient["params"]["embedding"], expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_rows_have_float32_gradients():
    """A token that occurs 1,000 times: in bfloat16 the sum would stop growing at 256."""
    model = Embedding(4, 8, nn.initializers.normal(1.0), jnp.bfloat16)
    params = sharding.unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    ids = jnp.full((10, 100), 2)
    rows, pullback = jax.vjp(lambda params: model.apply(params, ids), params)
    assert rows.dtype == jnp.bfloat16
    gradient = pullback(jnp.ones_like(rows))[0]["params"]["embedding"]
    np.testing.assert_array_equal(gradient, np.array([0, 0, 1000, 0], np.float32)[:, None] * np.ones(8, np.float32))
