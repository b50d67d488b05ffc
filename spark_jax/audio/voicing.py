"""How much of a signal has a pitch, and how its level changes: what tells a voice from noise (NumPy, on the host)."""

import numpy as np
from jaxtyping import Float

_FRAME, _HOP = 0.04, 0.02  # s
_PITCH = (60.0, 400.0)  # Hz
_PERIODIC = 0.4  # correlation with itself a period later, from which a frame has a pitch
_OVERLAP = 0.2  # of the window with itself, that a lag must leave
_RANGE = 1e-4  # power: frames down to 40 dB below the loudest count


def voiced_part(samples: Float[np.ndarray, " time"], sample_rate: int) -> float:
    """Returns the part of the loud frames (40 ms) that have a pitch between 60 and 400 Hz; 0 where nothing is loud.

    The signal is differentiated first, or the slow waves of brown noise would pass for periods.
    """
    frames = _loud_frames(np.diff(samples, prepend=samples[:1]), sample_rate)
    if not len(frames):
        return 0.0
    window = np.hanning(frames.shape[1])
    own = _autocorrelation(window[None])[0]  # a window fits itself less and less; far out only noise would be left
    last = min(sample_rate / _PITCH[0], np.count_nonzero(own > _OVERLAP * own[0]))
    lags = np.arange(int(sample_rate / _PITCH[1]), int(last))
    correlation = _autocorrelation((frames - frames.mean(axis=1, keepdims=True)) * window)
    fit = correlation[:, lags] / np.maximum(correlation[:, :1], 1e-30) / (own[lags] / own[0])
    peaks = (fit[:, 1:-1] > fit[:, :-2]) & (fit[:, 1:-1] >= fit[:, 2:])
    return float(np.mean(np.any(peaks & (fit[:, 1:-1] > _PERIODIC), axis=1)))


def steadiness(samples: Float[np.ndarray, " time"], sample_rate: int) -> float:
    """Returns the standard deviation of the loud frames' levels in dB: 0 for a tone, more than 3 for speech."""
    frames = _loud_frames(samples, sample_rate)
    return float(np.std(10 * np.log10(frames.var(axis=1) + 1e-30))) if len(frames) else 0.0


def _loud_frames(samples: np.ndarray, sample_rate: int) -> Float[np.ndarray, "frames length"]:
    length, hop = round(_FRAME * sample_rate), round(_HOP * sample_rate)
    if len(samples) < length:
        return np.zeros((0, length))
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::hop].astype(np.float64)
    power = frames.var(axis=1)
    return frames[(power > 0) & (power >= _RANGE * power.max())]


def _autocorrelation(frames: Float[np.ndarray, "frames length"]) -> Float[np.ndarray, "frames lags"]:
    length = frames.shape[1]
    spectrum = np.abs(np.fft.rfft(frames, 2 * length)) ** 2
    return np.fft.irfft(spectrum)[:, :length]
