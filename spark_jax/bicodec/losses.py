"""Losses of the codec's training, all in float32 (paper §3.1.4; weights and order in the training step)."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spark_jax.audio.mel import mel_filterbank
from spark_jax.audio.stft import stft
from spark_jax.bicodec.discriminator import FeatureMaps

MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BANDS = (5, 10, 20, 40, 80, 160, 320)
MEL_FLOOR = 1e-5

REPETITION_LAGS = (1, 2, 3)  # in tokens
REPETITION_FLOOR = 1e-6  # power of a token below which it is silence, which repeats itself


def adversarial_loss(fake: Sequence[FeatureMaps]) -> Float[Array, ""]:
    """Computes the generator's least squares, Σ mean((1 − D(fake))²) over the discriminators."""
    return sum(jnp.mean(jnp.square(1.0 - _float32(maps[-1]))) for maps in fake)


def feature_matching_loss(fake: Sequence[FeatureMaps], real: Sequence[FeatureMaps]) -> Float[Array, ""]:
    """Computes Σ mean|difference| over all feature maps but the scores; `real` is the caller's to detach."""
    return sum(
        jnp.mean(jnp.abs(_float32(ours) - _float32(theirs)))
        for fake_maps, real_maps in zip(fake, real, strict=True)
        for ours, theirs in zip(fake_maps[:-1], real_maps[:-1], strict=True)
    )


def discriminator_loss(fake: Sequence[FeatureMaps], real: Sequence[FeatureMaps]) -> Float[Array, ""]:
    """Computes the discriminators' least squares, Σ mean(D(fake)²) + mean((1 − D(real))²)."""
    return sum(jnp.mean(jnp.square(_float32(maps[-1]))) for maps in fake) + adversarial_loss(real)


def _float32(feature_map: Array) -> Array:
    return feature_map.astype(jnp.float32)


def multi_resolution_mel_loss(
    wave: Float[Array, "batch samples"], target: Float[Array, "batch samples"], sample_rate: int
) -> Float[Array, ""]:
    """Computes the sum over the windows of `mel_loss` (DAC's seven resolutions)."""
    losses = (
        mel_loss(wave, target, window, bands, sample_rate) for window, bands in zip(MEL_WINDOWS, MEL_BANDS, strict=True)
    )
    return sum(losses)


def repetition_loss(wave: Float[Array, "batch samples"], unvoiced: Bool[Array, "batch frames"]) -> Float[Array, ""]:
    """Computes the mean squared correlation between waveforms of unvoiced frames, one token apart and a few.

    Noise has next to none. A generator that learns from spectra alone makes noise of one pattern in every token, since
    a still spectrum is nearer to any noise than another noise is; it buzzes at the rate of the tokens.

    Args:
      wave: a waveform of whole frames.
      unvoiced: frames that are noise in the recording.

    Returns:
      0 if there is no pair of unvoiced frames.
    """
    frames = wave.reshape(*unvoiced.shape, -1)
    power = jnp.mean(jnp.square(frames), axis=-1)
    total, count = jnp.zeros(()), jnp.zeros(())
    for lag in REPETITION_LAGS:
        product = jnp.mean(frames[:, :-lag] * frames[:, lag:], axis=-1)
        scale = (power[:, :-lag] + REPETITION_FLOOR) * (power[:, lag:] + REPETITION_FLOOR)
        where = unvoiced[:, :-lag] & unvoiced[:, lag:]
        total += jnp.sum(jnp.square(product) / scale, where=where)
        count += jnp.sum(where)
    return total / jnp.maximum(count, 1.0)


def mel_loss(
    wave: Float[Array, "batch samples"],
    target: Float[Array, "batch samples"],
    window: int,
    bands: int,
    sample_rate: int,
) -> Float[Array, ""]:
    """Computes the mean absolute difference of log10 mel magnitudes at one resolution, hop window/4, floor 1e-5."""
    ours, theirs = (_log_mel(x, window, bands, sample_rate) for x in (wave, target))
    return jnp.mean(jnp.abs(ours - theirs))


def _log_mel(wave: Float[Array, "batch samples"], window: int, bands: int, sample_rate: int) -> Array:
    magnitude = jnp.abs(stft(wave, window, window // 4, window))
    mel = magnitude @ filterbank(window, bands, sample_rate)
    return jnp.log10(jnp.maximum(mel, MEL_FLOOR))


@functools.cache
def filterbank(window: int, bands: int, sample_rate: int) -> Float[np.ndarray, "bins bands"]:
    """Returns the mel filters of one resolution, from 0 Hz to half the sample rate."""
    return np.asarray(mel_filterbank(sample_rate, window, bands, 0.0, sample_rate / 2), np.float32)
