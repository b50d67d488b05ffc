"""Mel spectrograms: slaney scale and slaney norm."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spark_jax.audio.stft import stft
from spark_jax.config import MelConfig

# Slaney's scale: linear up to 1 kHz (mel 15), logarithmic with 27 steps per factor 6.4 above.
_HZ_PER_MEL = 200 / 3
_BREAK_HZ, _BREAK_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27


def mel_spectrogram(samples: Float[Array, "batch time"], config: MelConfig) -> Float[Array, "batch frames mels"]:
    """Returns the magnitude (power 1) mel spectrogram without logarithm; time // hop_length + 1 frames, float32.

    Reference: sparktts/models/bicodec.py, `init_mel_transformer`.

    Raises:
      SparkError: time ≤ n_fft // 2, which cannot be reflect-padded.
    """
    magnitude = jnp.abs(stft(samples, config.n_fft, config.hop_length, config.win_length))
    upper = config.sample_rate / 2 if config.mel_fmax is None else config.mel_fmax
    filterbank = mel_filterbank(config.sample_rate, config.n_fft, config.num_mels, config.mel_fmin, upper)
    return jnp.matmul(magnitude, filterbank, precision="highest")


@functools.cache
def mel_filterbank(
    sample_rate: int, n_fft: int, num_mels: int, fmin: float, fmax: float
) -> Float[np.ndarray, "bins mels"]:
    """Returns triangular filters of unit area over the STFT's bins; computed in float64, returned in float32.

    `fmin` and `fmax` in Hz: the lower edge of the first filter and the upper edge of the last.
    """
    frequencies = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(fmax), num_mels + 2))
    widths = np.diff(edges)
    distance = edges - frequencies[:, None]
    rising = -distance[:, :-2] / widths[:-1]
    falling = distance[:, 2:] / widths[1:]
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))
    return filters.astype(np.float32)


def _hz_to_mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _HZ_PER_MEL
    return _BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP


def _mel_to_hz(mel: Float[np.ndarray, " edges"]) -> Float[np.ndarray, " edges"]:
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, logarithmic)
