"""The convolutional position embedding of wav2vec2: a wide grouped convolution with weight norm."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax import config as config_lib
from spark_jax.nn.cpu.fourier_convolution import fourier_convolution


class PositionalConv(nn.Module):
    """Grouped convolution over time (kernel 128 in the release) with a weight norm for each tap (torch's dim 2).

    Parameters: `v` [kernel, hidden / groups, hidden], `g` [kernel], `bias` [hidden]; the kernel is g · v / ‖v‖ with the
    norm over the last two dimensions. There are kernel // 2 zeros on the left and as many output frames as input frames
    (reference: transformers' Wav2Vec2PositionalConvEmbedding, without its GELU).
    """

    config: config_lib.Wav2Vec2Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames hidden"]) -> Float[Array, "batch frames hidden"]:
        hidden, kernel = self.config.hidden_size, self.config.num_conv_pos_embeddings
        groups = self.config.num_conv_pos_embedding_groups
        deviation = 2.0 / np.sqrt(kernel * hidden)
        v = self.param(
            "v",
            nn.with_logical_partitioning(nn.initializers.normal(deviation), (None, "conv_in", "conv_out")),
            (kernel, hidden // groups, hidden),
        )
        norm = jnp.sqrt(jnp.sum(v.astype(jnp.float32) ** 2, axis=(1, 2)))
        g = self.param("g", nn.with_logical_partitioning(lambda _: norm, (None,)))  # so that the kernel starts as v
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)), (hidden,))
        y = grouped_convolution(x, v * (g / norm)[:, None, None], groups) + bias
        return y.astype(self.dtype)


def grouped_convolution(
    x: Float[Array, "batch frames channels"], weight: Float[Array, "kernel in channels"], groups: int
) -> Float[Array, "batch frames channels"]:
    """Computes a grouped convolution in float32 that keeps the length: kernel // 2 zeros before, the rest after.

    CPUs use the FFT, because XLA's direct convolution is slow there, above all its backward pass ([8, 150, 192], kernel
    128, 16 groups, forward and backward: 268 ms, with the FFT 15 ms). Accelerators have kernels for the direct form,
    under which a batch that is divided over devices also stays divided.
    """
    x, weight = x.astype(jnp.float32), weight.astype(jnp.float32)
    return jax.lax.platform_dependent(
        x,
        weight,
        cpu=functools.partial(fourier_convolution, groups=groups),
        default=functools.partial(_directly, groups=groups),
    )


def _directly(
    x: Float[Array, "batch frames channels"], weight: Float[Array, "kernel in channels"], groups: int
) -> Float[Array, "batch frames channels"]:
    kernel = len(weight)
    return jax.lax.conv_general_dilated(
        x,
        weight,
        (1,),
        [(kernel // 2, kernel - 1 - kernel // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
        precision="highest",
    )
