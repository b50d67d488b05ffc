"""Sampling blocks against the reference, and the lengths that it cannot sample."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.bicodec.sampling import SamplingBlock
from spark_jax.errors import SparkError

CASES = ["up1_down2_T10", "up1_down2_T9", "up2_down1_T9", "up2_down2_T9", "up3_down1_T9", "up5_down1_T7"]
FILTERS = {"upsample_filter": "de_conv_upsampler", "downsample_filter": "conv_downsampler"}


@pytest.mark.parametrize("case", CASES)
def test_golden(modules_golden, case):
    up, down = map(int, re.match(r"up(\d)_down(\d)", case).groups())
    golden = {
        name.removeprefix(f"sampling/{case}/"): value
        for name, value in modules_golden.items()
        if name.startswith(f"sampling/{case}/")
    }
    params = {}
    for ours, theirs in FILTERS.items():
        if f"{theirs}.1.weight" in golden:
            kernel = np.transpose(golden[f"{theirs}.1.weight"], (2, 1, 0))
            params[ours] = {"kernel": kernel, "bias": golden[f"{theirs}.1.bias"]}
    output = SamplingBlock(up, down).apply({"params": params}, golden["in"])
    np.testing.assert_allclose(np.swapaxes(output, 1, 2), golden["out"], atol=1e-5)


def test_ratio_one_is_three_times_the_input():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2))
    np.testing.assert_allclose(SamplingBlock().apply({}, x), 3 * x, rtol=1e-6)


def test_lengths_that_disagree_are_an_error():
    with pytest.raises(SparkError, match="11 frames by 3"):
        SamplingBlock(downsample=3).init(jax.random.key(0), jnp.zeros((1, 11, 2)))
