"""Weight-normed two-dimensional convolution, channels-last, for discriminators of spectrograms."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax.nn.convolution import Initializer, torch_uniform


class WeightNormConv2d(nn.Module):
    """Convolution over two axes whose kernel is kernel_g · kernel_v / ‖kernel_v‖, with a norm for each output channel.

    Attributes:
      features: number of output channels.
      kernel_size: sizes along both axes, odd; each axis is padded with zeros by half its size on both sides.
      stride: strides along both axes.
      dtype: type of the convolution; the norm is computed in float32.
    """

    features: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    kernel_init: Initializer = torch_uniform
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch height width in"]) -> Float[Array, "batch rows columns out"]:
        shape = (*self.kernel_size, inputs.shape[-1], self.features)
        init = nn.with_logical_partitioning(self.kernel_init, (None, None, "conv_in", "conv_out"))
        direction = self.param("kernel_v", init, shape, jnp.float32)
        norm = jnp.sqrt(jnp.sum(jnp.square(direction), axis=(0, 1, 2)))
        init = nn.with_logical_partitioning(lambda _: norm, ("conv_out",))
        magnitude = self.param("kernel_g", init)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",))
        bias = self.param("bias", init, (self.features,), jnp.float32)
        kernel = direction * (magnitude / norm)
        outputs = lax.conv_general_dilated(
            inputs.astype(self.dtype),
            kernel.astype(self.dtype),
            self.stride,
            [(size // 2, size // 2) for size in self.kernel_size],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return outputs + bias.astype(self.dtype)
