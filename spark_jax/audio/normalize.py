"""Level, length and low end of a signal before it becomes tokens (NumPy, on the host)."""

import functools

import numpy as np
from jaxtyping import Float

TARGET_VOLUME = 0.2


def volume_normalize(samples: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    """Brings the loud part of a signal to a mean magnitude of 0.2; silence stays silence.

    The loud part lies between the 90th and the 99th percentile of those magnitudes above 0.01 that the signal
    had on the way in: a quiet signal's scaling up to a peak of 0.1 does not change them. That is a quirk of
    the reference (sparktts/utils/audio.py, `audio_volume_normalize`), and tokens depend on it.
    """
    # In place: a long recording is some hundred megabytes.
    magnitudes = np.abs(samples)
    magnitudes.sort()
    peak = magnitudes[-1]
    if peak < 0.1:
        samples = samples / max(peak, 1e-3) * 0.1
    magnitudes = magnitudes[np.searchsorted(magnitudes, 0.01, side="right") :]
    count = len(magnitudes)
    if count <= 10:
        return samples
    volume = np.mean(magnitudes[int(0.9 * count) : int(0.99 * count)])
    del magnitudes
    samples = samples * np.clip(TARGET_VOLUME / volume, 0.1, 10)
    samples /= max(samples.max(), -samples.min(), 1.0)
    return samples


def reference_clip(samples: Float[np.ndarray, " time"], length: int) -> Float[np.ndarray, " length"]:
    """Returns the first `length` samples; a shorter signal is repeated first (spec: 6 s of whole tokens)."""
    return np.resize(samples, length)


def highpass(samples: Float[np.ndarray, " time"], sample_rate: int, cutoff: float = 40.0) -> Float[np.ndarray, " time"]:
    """Filters by a second-order Butterworth high-pass (a biquad of quality 0.707); a training-time step only.

    `cutoff` is in Hz. Clipped to ±1 as the reference's is (sparktts/utils/audio.py, `audio_highpass_filter`).
    """
    import scipy.signal  # half of the command line's start-up time, and no request needs it

    filtered = scipy.signal.lfilter(*_highpass_biquad(sample_rate, cutoff), samples)
    return np.clip(filtered, -1.0, 1.0).astype(samples.dtype)


@functools.cache
def _highpass_biquad(sample_rate, cutoff):
    import scipy.signal

    return scipy.signal.butter(2, cutoff, "highpass", fs=sample_rate)
