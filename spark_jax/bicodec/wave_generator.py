"""Wave generator: latents at the token rate → waveform (DAC's decoder; paper §3.1.1).

Kernels start from torch's default (the reference's N(0, 0.02) never reaches its weight-normed layers); transposed ones
are scaled for the kernel / stride taps that contribute to one sample, so that the output of an untrained generator does
not fade.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax.bicodec.source import Anchor, Pitch, SourceMix, source_channels
from spark_jax.config import WaveGeneratorConfig
from spark_jax.nn.convolution import Conv, ConvTranspose
from spark_jax.nn.mask import Mask, upsample_mask, zero_padding
from spark_jax.nn.snake import Snake

DILATIONS = (1, 3, 9)


class ResidualUnit(nn.Module):
    """x + conv₁(Snake(conv₇(Snake(x)))), where the convolution of size 7 is dilated."""

    dilation: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch time channels"], mask: Mask = None
    ) -> Float[Array, "batch time channels"]:
        channels = inputs.shape[-1]
        settings = {"weight_norm": True, "dtype": self.dtype}
        x = Snake(self.dtype, name="snake_0")(zero_padding(inputs, mask))
        x = Conv(channels, 7, padding=3 * self.dilation, dilation=self.dilation, name="conv_0", **settings)(x)
        x = Snake(self.dtype, name="snake_1")(x)
        return inputs + Conv(channels, 1, name="conv_1", **settings)(x)


class UpsamplingBlock(nn.Module):
    """Snake → transposed convolution, perhaps with a harmonic source added → three residual units."""

    features: int
    kernel_size: int
    stride: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch time channels"],
        mask: Mask = None,
        source: Float[Array, "batch samples source"] | None = None,
    ) -> Float[Array, "batch samples features"]:
        x = Snake(self.dtype, name="snake")(zero_padding(inputs, mask))
        upsample = ConvTranspose(
            self.features,
            self.kernel_size,
            self.stride,
            (self.kernel_size - self.stride) // 2,
            kernel_init=nn.initializers.variance_scaling(self.stride / 3, "fan_in", "uniform"),
            dtype=self.dtype,
            name="upsample",
        )
        x = upsample(x)
        if source is not None:
            x = SourceMix(self.dtype, name="source")(x, source)
        mask = upsample_mask(mask, self.stride)
        unit_class = nn.remat(ResidualUnit) if self.remat else ResidualUnit
        for i, dilation in enumerate(DILATIONS):
            x = unit_class(dilation, self.dtype, name=f"unit_{i}")(x, mask)
        return x


class WaveGenerator(nn.Module):
    """Convolution → upsampling blocks → Snake → convolution → tanh; every block halves the number of channels.

    With `remat`, residual units and the blocks around them save only their inputs for the gradient. If the
    configuration has a harmonic source, the generator must be given the pitch of its frames.
    """

    config: WaveGeneratorConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "batch time channels"],
        mask: Mask = None,
        pitch: Pitch | None = None,
        sample_rate: int = 16_000,
        anchor: Anchor | None = None,
        noise_key: Array | None = None,
    ) -> Float[Array, "batch samples"]:
        """Returns time · product of the rates samples in −1…1, which are zero outside the mask.

        Args:
          latents: one for each frame.
          mask: True for frames that are no padding, which follows them; None: all.
          pitch: pitch of the frames; ignored without a harmonic source.
          sample_rate: static; samples per second of the output.
          anchor: position of the frames in an utterance that is made in parts; None: it begins with them.
          noise_key: random key of the source's noise; None: a fixed one.

        Raises:
          ValueError: there is a harmonic source, and no pitch.
        """
        c = self.config
        sources = {}
        if c.source is not None:
            if pitch is None:
                raise ValueError("the wave generator has a harmonic source, and was given no pitch")
            frequency = pitch.f0.astype(jnp.float32) / sample_rate
            sources = source_channels(c.source, frequency, pitch.voicing, c.rates, mask, anchor, noise_key)
        settings = {"padding": 3, "weight_norm": True, "dtype": self.dtype}
        x = Conv(c.channels, 7, name="conv_in", **settings)(zero_padding(latents, mask))
        block_class = nn.remat(UpsamplingBlock) if self.remat else UpsamplingBlock
        for i, (rate, kernel_size) in enumerate(zip(c.rates, c.kernel_sizes, strict=True)):
            features = c.channels // 2 ** (i + 1)
            x = block_class(features, kernel_size, rate, self.dtype, self.remat, name=f"block_{i}")(
                x, mask, sources.get(i)
            )
            mask = upsample_mask(mask, rate)
        x = Snake(self.dtype, name="snake")(zero_padding(x, mask))
        x = Conv(1, 7, axes=(None, "conv_in", None), name="conv_out", **settings)(x)  # one channel
        return zero_padding(jnp.tanh(x.astype(jnp.float32)), mask)[..., 0]
