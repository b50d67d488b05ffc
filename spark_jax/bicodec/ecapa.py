"""ECAPA-TDNN: mel frames → x-vector and latent frames (reference speaker/ecapa_tdnn.py)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax.config import SpeakerEncoderConfig
from spark_jax.nn.convolution import Conv
from spark_jax.nn.linear import Linear
from spark_jax.nn.norm import BatchNorm

VARIANCE_FLOOR = 1e-7


class ConvReluNorm(nn.Module):
    """Convolution that keeps the length → ReLU → batch norm, in this order."""

    features: int
    kernel_size: int = 1
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time in"], train: bool) -> Float[Array, "batch time out"]:
        padding = self.dilation * (self.kernel_size - 1) // 2
        conv = Conv(
            self.features, self.kernel_size, padding=padding, dilation=self.dilation, dtype=self.dtype, name="conv"
        )
        return BatchNorm(dtype=self.dtype, name="norm")(jax.nn.relu(conv(inputs)), train)


class Res2(nn.Module):
    """Splits the channels and convolves each split but the last after adding the previous split's result."""

    scale: int
    dilation: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time channels"], train: bool) -> Float[Array, "batch time channels"]:
        splits = jnp.split(inputs, self.scale, axis=-1)
        width = splits[0].shape[-1]
        outputs = []
        x = splits[0]
        for i in range(self.scale - 1):
            x = splits[i] if i == 0 else x + splits[i]
            x = ConvReluNorm(width, 3, self.dilation, self.dtype, name=f"split_{i}")(x, train)
            outputs.append(x)
        return jnp.concatenate([*outputs, splits[-1]], axis=-1)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate that is computed from the channels' means over time."""

    bottleneck: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time channels"]) -> Float[Array, "batch time channels"]:
        gate = jax.nn.relu(Linear(self.bottleneck, dtype=self.dtype, name="linear_1")(jnp.mean(inputs, axis=1)))
        gate = Linear(inputs.shape[-1], ("mlp", "embed"), dtype=self.dtype, name="linear_2")(gate)
        return inputs * jax.nn.sigmoid(gate)[:, None]


class SERes2Block(nn.Module):
    """x + SE(conv 1 (Res2 (conv 1 x)))."""

    dilation: int
    scale: int
    bottleneck: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time channels"], train: bool) -> Float[Array, "batch time channels"]:
        channels = inputs.shape[-1]
        x = ConvReluNorm(channels, dtype=self.dtype, name="conv_in")(inputs, train)
        x = Res2(self.scale, self.dilation, self.dtype, name="res2")(x, train)
        x = ConvReluNorm(channels, dtype=self.dtype, name="conv_out")(x, train)
        return inputs + SqueezeExcitation(self.bottleneck, self.dtype, name="gate")(x)


class AttentiveStatisticsPooling(nn.Module):
    """Weighted mean and standard deviation over time, with attention weights that see the global statistics."""

    bottleneck: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time channels"]) -> Float[Array, "batch 2*channels"]:
        inputs = inputs.astype(jnp.float32)
        mean = jnp.mean(inputs, axis=1, keepdims=True)
        unbiased = jnp.sum(jnp.square(inputs - mean), axis=1, keepdims=True) / max(inputs.shape[1] - 1, 1)
        std = jnp.sqrt(unbiased + VARIANCE_FLOOR)
        context = [inputs, jnp.broadcast_to(mean, inputs.shape), jnp.broadcast_to(std, inputs.shape)]
        x = jnp.tanh(Conv(self.bottleneck, 1, name="linear_1")(jnp.concatenate(context, axis=-1)))
        weights = jax.nn.softmax(Conv(inputs.shape[-1], 1, name="linear_2")(x), axis=1)
        mean = jnp.sum(weights * inputs, axis=1)
        variance = jnp.sum(weights * jnp.square(inputs), axis=1) - jnp.square(mean)
        return jnp.concatenate([mean, jnp.sqrt(jnp.maximum(variance, VARIANCE_FLOOR))], axis=-1)


class Ecapa(nn.Module):
    """Returns the x-vector and the latent frames from which the global tokens are made."""

    config: SpeakerEncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, mel: Float[Array, "batch frames mels"], train: bool
    ) -> tuple[Float[Array, "batch out"], Float[Array, "batch frames latent"]]:
        c = self.config
        x = ConvReluNorm(c.ecapa_channels, 5, dtype=self.dtype, name="layer_1")(mel, train)
        outputs = []
        for i, dilation in enumerate((2, 3, 4), start=2):
            x = SERes2Block(dilation, c.res2_scale, c.se_bottleneck, self.dtype, name=f"layer_{i}")(x, train)
            outputs.append(x)
        conv = Conv(c.ecapa_latent_channels, 1, dtype=self.dtype, name="conv")
        latent = jax.nn.relu(conv(jnp.concatenate(outputs, axis=-1)))
        pooled = AttentiveStatisticsPooling(c.astp_bottleneck, name="pool")(latent)
        return Linear(c.out_dim, name="linear")(BatchNorm(name="norm")(pooled, train)), latent
