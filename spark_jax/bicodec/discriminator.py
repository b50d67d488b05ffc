"""Discriminators of the codec's training: multi-period and multi-band complex STFT.

They are those of DAC (Kumar et al. 2023, arXiv 2306.06546, §3.3), which BiCodec follows (paper §3.1.4).
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax.audio.stft import stft
from spark_jax.config import DiscriminatorConfig
from spark_jax.nn.convolution import Conv
from spark_jax.nn.convolution2d import WeightNormConv2d

LEAKY_SLOPE = 0.1
FeatureMaps = list[Float[Array, "..."]]  # outputs of one discriminator's layers, its scores last


class Discriminators(nn.Module):
    """All discriminators; each returns its feature maps, the last of which holds the scores.

    Attributes:
      config: sizes.
      remat: whether each discriminator saves only the feature maps that it returns for the gradient.
      dtype: type of the convolutions and the feature maps; spectra are float32.
    """

    config: DiscriminatorConfig = DiscriminatorConfig()
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, wave: Float[Array, "batch samples"]) -> list[FeatureMaps]:
        config = self.config
        wave = normalize_peak(wave)
        by_period, by_spectrum = PeriodDiscriminator, SpectralDiscriminator
        if self.remat:
            by_period, by_spectrum = nn.remat(by_period), nn.remat(by_spectrum)
        maps = [
            by_period(period, config.period_channels, self.dtype, name=f"period_{period}")(wave)
            for period in config.periods
        ]
        sizes = zip(config.fft_sizes, config.hop_lengths, config.window_lengths, strict=True)
        for n_fft, hop, window in sizes:
            module = by_spectrum(
                n_fft, hop, window, config.bands, config.spectral_channels, self.dtype, name=f"spectral_{n_fft}"
            )
            maps.append(module(wave))
        return maps


def normalize_peak(wave: Float[Array, "batch samples"]) -> Float[Array, "batch samples"]:
    """Removes the mean and scales the peak to 0.8, so that the discriminators do not judge by loudness."""
    wave = wave - jnp.mean(wave, axis=-1, keepdims=True)
    return 0.8 * wave / (jnp.max(jnp.abs(wave), axis=-1, keepdims=True) + 1e-9)


class PeriodDiscriminator(nn.Module):
    """Convolutions along every `period`-th sample.

    The original's kernels have width 1 across the phases, so that phases are rows of the batch here: feature maps are
    [batch·period, frames, channels].
    """

    period: int
    channels: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, wave: Float[Array, "batch samples"]) -> FeatureMaps:
        # Appends a whole period where the length is a multiple already, as the original does.
        padding = self.period - wave.shape[1] % self.period
        wave = jnp.pad(wave, ((0, 0), (0, padding)), mode="reflect")
        x = wave.reshape(wave.shape[0], -1, self.period).swapaxes(1, 2)
        x = x.reshape(-1, x.shape[2], 1)
        settings = {"weight_norm": True, "dtype": self.dtype}
        maps = []
        for i, channels in enumerate(self.channels):
            stride = 1 if i == len(self.channels) - 1 else 3
            x = Conv(channels, 5, stride=stride, padding=2, name=f"conv_{i}", **settings)(x)
            x = jax.nn.leaky_relu(x, LEAKY_SLOPE)
            maps.append(x)
        return [*maps, Conv(1, 3, padding=1, name="post", **settings)(x)]


class SpectralDiscriminator(nn.Module):
    """Convolutions over the bands of a complex spectrogram, with feature maps [batch, frames, bins, channels]."""

    n_fft: int
    hop_length: int
    window_length: int
    bands: tuple[float, ...]
    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, wave: Float[Array, "batch samples"]) -> FeatureMaps:
        spectrum = stft(wave, self.n_fft, self.hop_length, self.window_length)
        spectrum = jnp.stack([spectrum.real, spectrum.imag], axis=-1)
        edges = [int(fraction * (self.n_fft // 2 + 1)) for fraction in self.bands]
        layers = (((3, 9), (1, 1)), *((((3, 9), (1, 2)),) * 3), ((3, 3), (1, 1)))
        maps, outputs = [], []
        for band, (low, high) in enumerate(itertools.pairwise(edges)):
            x = spectrum[:, :, low:high]
            for i, (kernel, stride) in enumerate(layers):
                x = WeightNormConv2d(self.channels, kernel, stride, dtype=self.dtype, name=f"band_{band}_conv_{i}")(x)
                x = jax.nn.leaky_relu(x, LEAKY_SLOPE)
                maps.append(x)
            outputs.append(x)
        x = jnp.concatenate(outputs, axis=2)
        return [*maps, WeightNormConv2d(1, (3, 3), dtype=self.dtype, name="post")(x)]
