"""One-dimensional convolutions, channels-last, whose output lengths are those of torch.

Kernels have the layout [kernel, in, out] (depthwise: [kernel, 1, channels]). Padding is symmetric, in frames.
Transposed convolutions are matrix products with overlap-add: on CPUs, the gradient of a convolution over a dilated
input was measured to be ten times slower.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Initializer = jax.nn.initializers.Initializer

# torch's default for convolutions and linear layers: uniform in ±1/sqrt(fan in).
torch_uniform: Initializer = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

CONV_AXES = (None, "conv_in", "conv_out")
DEPTHWISE_AXES = (None, None, "embed")


def conv(
    inputs: Float[Array, "batch time in"],
    kernel: Float[Array, "kernel in out"],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Float[Array, "batch frames out"]:
    """Computes a convolution (cross-correlation) with `padding` zeros on both sides, as torch.nn.Conv1d does."""
    if kernel.shape[0] == 1 and stride == 1 and padding == 0:
        return inputs @ kernel[0]
    return lax.conv_general_dilated(
        inputs,
        kernel,
        (stride,),
        [(padding, padding)],
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )


def conv_transpose(
    inputs: Float[Array, "batch time in"],
    kernel: Float[Array, "kernel in out"],
    *,
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
) -> Float[Array, "batch samples out"]:
    """Computes a transposed convolution of (time − 1)·stride − 2·padding + kernel + output_padding samples.

    A matrix product gives each input's contribution to the next `taps` blocks of `stride` samples; the contributions
    are shifted and added.
    """
    length, channels, features = kernel.shape
    batch, time, _ = inputs.shape
    taps = -(-length // stride)
    samples = (time - 1) * stride - 2 * padding + length + output_padding
    kernel = jnp.pad(kernel, ((0, taps * stride - length), (0, 0), (0, 0)))
    kernel = kernel.transpose(1, 0, 2).reshape(channels, taps * stride * features)
    spread = (inputs @ kernel).reshape(batch, time, taps, stride * features)
    return _overlap_add(spread).reshape(batch, -1, features)[:, padding : padding + samples]


def _overlap_add(spread: Float[Array, "batch time taps block"]) -> Float[Array, "batch time+taps-1 block"]:
    """Adds tap i of frame t into block t + i."""
    taps = spread.shape[2]
    return sum(jnp.pad(spread[:, :, i], ((0, 0), (i, taps - 1 - i), (0, 0))) for i in range(taps))


def depthwise_conv(
    inputs: Float[Array, "batch time channels"],
    kernel: Float[Array, "kernel 1 channels"],
    *,
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "batch frames channels"]:
    """Computes a depthwise convolution as shifted multiply-adds.

    XLA's grouped convolution is forty times slower on CPUs.
    """
    length = kernel.shape[0]
    inputs = jnp.pad(inputs, ((0, 0), (padding, padding), (0, 0)))
    frames = (inputs.shape[1] - length) // stride + 1
    span = (frames - 1) * stride + 1
    return sum(inputs[:, j : j + span : stride] * kernel[j, 0] for j in range(length))


def depthwise_conv_transpose(
    inputs: Float[Array, "batch time channels"],
    kernel: Float[Array, "kernel 1 channels"],
    *,
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
) -> Float[Array, "batch samples channels"]:
    """Computes a depthwise transposed convolution whose kernel size is a multiple of its stride."""
    length, _, channels = kernel.shape
    batch, time, _ = inputs.shape
    taps = length // stride
    samples = (time - 1) * stride - 2 * padding + length + output_padding
    kernel = kernel.reshape(taps, stride * channels)
    spread = jnp.tile(inputs, (1, 1, stride))[:, :, None] * kernel
    return _overlap_add(spread).reshape(batch, -1, channels)[:, padding : padding + samples]


def weight_norm(
    direction: Float[Array, "kernel in out"], magnitude: Float[Array, "channels"], axis: int
) -> Float[Array, "kernel in out"]:
    """Returns magnitude · direction / ‖direction‖, with one norm for each channel of `axis` (2: output, 1: input)."""
    norm = _channel_norm(direction, axis)
    scale = magnitude / norm
    return direction * (scale if axis == 2 else scale[:, None])


def _channel_norm(direction: Float[Array, "kernel in out"], axis: int) -> Float[Array, "channels"]:
    return jnp.sqrt(jnp.sum(jnp.square(direction), axis=tuple(a for a in range(3) if a != axis)))


class Conv(nn.Module):
    """`conv` with parameters; with `weight_norm` these are kernel_v and kernel_g, which are combined in float32."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    weight_norm: bool = False
    axes: tuple[str | None, str | None, str | None] = CONV_AXES
    kernel_init: Initializer = torch_uniform
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time in"]) -> Float[Array, "batch frames out"]:
        shape = (self.kernel_size, inputs.shape[-1], self.features)
        kernel = _kernel(self, shape, self.axes, norm_axis=2 if self.weight_norm else None)
        bias = _bias(self, self.features, self.axes[2])
        outputs = conv(
            inputs.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        return outputs + bias.astype(self.dtype)


class ConvTranspose(nn.Module):
    """`conv_transpose` with weight-normed parameters; as in torch, there is one norm for each *input* channel."""

    features: int
    kernel_size: int
    stride: int
    padding: int = 0
    kernel_init: Initializer = torch_uniform
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time in"]) -> Float[Array, "batch samples out"]:
        kernel = _kernel(self, (self.kernel_size, inputs.shape[-1], self.features), norm_axis=1)
        bias = _bias(self, self.features, "conv_out")
        outputs = conv_transpose(
            inputs.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=self.padding
        )
        return outputs + bias.astype(self.dtype)


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with parameters."""

    kernel_size: int
    stride: int = 1
    padding: int = 0
    kernel_init: Initializer = torch_uniform
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time channels"]) -> Float[Array, "batch frames channels"]:
        channels = inputs.shape[-1]
        kernel = _kernel(self, (self.kernel_size, 1, channels), axes=DEPTHWISE_AXES)
        bias = _bias(self, channels, "embed")
        outputs = depthwise_conv(
            inputs.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=self.padding
        )
        return outputs + bias.astype(self.dtype)


class DepthwiseConvTranspose(nn.Module):
    """`depthwise_conv_transpose` with parameters."""

    kernel_size: int
    stride: int
    padding: int = 0
    output_padding: int = 0
    kernel_init: Initializer = torch_uniform
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time channels"]) -> Float[Array, "batch samples channels"]:
        channels = inputs.shape[-1]
        kernel = _kernel(self, (self.kernel_size, 1, channels), axes=DEPTHWISE_AXES)
        bias = _bias(self, channels, "embed")
        outputs = depthwise_conv_transpose(
            inputs.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
        )
        return outputs + bias.astype(self.dtype)


def _kernel(
    module: nn.Module,
    shape: tuple[int, int, int],
    axes: tuple[str | None, ...] = CONV_AXES,
    norm_axis: int | None = None,
) -> Float[Array, "kernel in out"]:
    init = nn.with_logical_partitioning(module.kernel_init, axes)
    if norm_axis is None:
        return module.param("kernel", init, shape, jnp.float32)
    direction = module.param("kernel_v", init, shape, jnp.float32)
    magnitude = module.param(
        "kernel_g", nn.with_logical_partitioning(lambda _: _channel_norm(direction, norm_axis), (axes[norm_axis],))
    )
    return weight_norm(direction, magnitude, norm_axis)


def _bias(module: nn.Module, features: int, axis: str | None) -> Float[Array, "channels"]:
    init = nn.with_logical_partitioning(nn.initializers.zeros, (axis,))
    return module.param("bias", init, (features,), jnp.float32)
