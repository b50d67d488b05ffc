"""Finite scalar quantizers against the reference: odd and even levels, residual stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.bicodec.fsq import FiniteScalarQuantizer, ResidualFSQ


def test_mixed_levels(modules_golden):
    golden = {name.removeprefix("fsq_8543/"): value for name, value in modules_golden.items()}
    fsq = FiniteScalarQuantizer((8, 5, 4, 3))
    codes, indices = fsq.quantize(golden["in"])
    np.testing.assert_allclose(fsq.bound(golden["in"]), golden["bound"], atol=1e-5)
    np.testing.assert_allclose(codes, golden["out"], atol=1e-6)
    np.testing.assert_array_equal(indices, golden["indices"])
    np.testing.assert_allclose(fsq.codes(jnp.arange(fsq.codebook_size)), golden["codebook"], atol=1e-6)


@pytest.mark.parametrize("quantizers", [1, 2, 3])
def test_residual(modules_golden, quantizers):
    golden = {name.removeprefix(f"rfsq_nq{quantizers}/"): value for name, value in modules_golden.items()}
    levels = (8, 5, 4, 3) if quantizers == 2 else (4,) * 6
    inputs = np.swapaxes(golden["in"], 1, 2)
    params = {
        name: {"kernel": golden[f"{name}.weight"].T, "bias": golden[f"{name}.bias"]}
        for name in ("project_in", "project_out")
        if f"{name}.weight" in golden
    }
    quantizer = ResidualFSQ(inputs.shape[-1], levels, quantizers)
    bound = quantizer.bind({"params": params})
    np.testing.assert_allclose(np.stack(bound.scales), golden["scales"], rtol=1e-6)
    output, indices = jax.jit(lambda x: quantizer.apply({"params": params}, x))(inputs)
    np.testing.assert_array_equal(indices, golden["indices"])
    np.testing.assert_allclose(np.swapaxes(output, 1, 2), golden["out"], atol=1e-5)
    np.testing.assert_allclose(bound.decode(indices).swapaxes(1, 2), golden["out_from_indices"], atol=1e-5)
