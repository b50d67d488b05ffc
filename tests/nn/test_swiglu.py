"""The gated activation against autodiff through its plain form, in both types, far out too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.nn.swiglu import swiglu


def plain(gate, up):
    return jax.nn.silu(gate) * up


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_value_and_gradients(dtype, tolerance):
    rng = np.random.default_rng(0)
    gate = jnp.asarray(np.concatenate([rng.normal(size=1000) * 3, [-100.0, -20.0, 0.0, 20.0, 100.0]]), dtype)
    up, weight = (jnp.asarray(rng.normal(size=gate.size), dtype) for _ in range(2))

    def run(function, *inputs):
        value, pullback = jax.vjp(function, *inputs)
        return value, *pullback(weight.astype(value.dtype))

    expected = run(plain, *(x.astype(jnp.float32) for x in (gate, up)))
    for ours, theirs in zip(run(swiglu, gate, up), expected, strict=True):
        assert ours.dtype == dtype and np.isfinite(np.asarray(ours, np.float32)).all()
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, atol=tolerance * np.abs(theirs).max())


def test_only_the_inputs_are_kept():
    shape = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    assert len(jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(swiglu, *x)[1], shape, shape))) == 2
