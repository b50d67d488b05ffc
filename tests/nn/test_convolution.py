"""Convolutions against the reference and against XLA's own."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from safetensors.flax import load_file

from spark_jax.nn.convolution import Conv, ConvTranspose, conv_transpose, depthwise_conv, depthwise_conv_transpose

GOLDEN = load_file(Path(__file__).parents[1] / "assets" / "bicodec" / "modules_golden.safetensors")


def test_weight_normed_transposed_golden():
    golden = {name.removeprefix("wntconv_k11s5p3/"): value for name, value in GOLDEN.items()}
    params = {
        "kernel_v": np.transpose(golden["weight_v"], (2, 0, 1)),
        "kernel_g": golden["weight_g"].reshape(-1),
        "bias": golden["bias"],
    }
    output = ConvTranspose(3, 11, 5, 3).apply({"params": params}, np.swapaxes(golden["in"], 1, 2))
    np.testing.assert_allclose(np.swapaxes(output, 1, 2), golden["out"], atol=1e-6)


def reference_transpose(inputs, kernel, stride, padding, output_padding, groups=1):
    """lax.conv_general_dilated on the input with zeros inserted: torch's definition."""
    length = kernel.shape[0]
    return lax.conv_general_dilated(
        inputs,
        kernel[::-1],
        (1,),
        [(length - 1 - padding, length - 1 - padding + output_padding)],
        lhs_dilation=(stride,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding"),
    [(16, 8, 4, 0), (11, 5, 3, 0), (4, 2, 1, 0), (6, 3, 2, 1), (5, 3, 1, 0)],
)
def test_transposed_equals_dilated_input(kernel, stride, padding, output_padding):
    x = jax.random.normal(jax.random.key(0), (2, 7, 3))
    weights = jax.random.normal(jax.random.key(1), (kernel, 3, 5))
    lengths = {"stride": stride, "padding": padding, "output_padding": output_padding}
    expected = reference_transpose(x, weights, **lengths)
    np.testing.assert_allclose(jax.jit(lambda x, w: conv_transpose(x, w, **lengths))(x, weights), expected, atol=1e-5)


@pytest.mark.parametrize(
    "ratio", [pytest.param(2, marks=pytest.mark.extended), 3, pytest.param(5, marks=pytest.mark.extended)]
)
def test_depthwise_equals_grouped(ratio):
    x = jax.random.normal(jax.random.key(0), (2, 17, 6))
    kernel = jax.random.normal(jax.random.key(1), (2 * ratio, 1, 6))
    padding = ratio // 2 + ratio % 2
    expected = lax.conv_general_dilated(
        x, kernel, (ratio,), [(padding, padding)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=6
    )
    np.testing.assert_allclose(depthwise_conv(x, kernel, stride=ratio, padding=padding), expected, atol=1e-5)
    expected = reference_transpose(x, kernel, ratio, padding, ratio % 2, groups=6)
    actual = depthwise_conv_transpose(x, kernel, stride=ratio, padding=padding, output_padding=ratio % 2)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_weight_norm_starts_as_its_direction():
    params = nn.unbox(Conv(4, 3, weight_norm=True).init(jax.random.key(0), jnp.zeros((1, 5, 2))))["params"]
    norm = np.sqrt(np.sum(np.square(params["kernel_v"]), axis=(0, 1)))
    np.testing.assert_allclose(params["kernel_g"], norm, rtol=1e-6)
