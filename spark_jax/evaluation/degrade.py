"""Makes references bad: noise of a given level, and the reverberation of a room."""

import numpy as np
import scipy.signal
from jaxtyping import Float

_DIRECT = 0.002  # s after the first sound that are left clear


def add_noise(
    samples: Float[np.ndarray, " time"], snr_db: float, rng: np.random.Generator, color: str = "pink"
) -> Float[np.ndarray, " time"]:
    """Returns the speech with noise so many dB below it (mean power of both).

    Args:
      samples: the speech.
      snr_db: signal-to-noise ratio.
      rng: of the noise.
      color: "white", or "pink": as loud in each octave.
    """
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    if color == "pink":
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, len(samples))
    level = np.sqrt(np.mean(samples**2) / max(np.mean(noise**2), 1e-30)) * 10 ** (-snr_db / 20)
    return limited(samples + level * noise)


def add_reverberation(
    samples: Float[np.ndarray, " time"], seconds: float, sample_rate: int, rng: np.random.Generator
) -> Float[np.ndarray, " time"]:
    """Returns the speech in a room: noise that dies away follows every sound, as loud in all as the sound itself.

    Args:
      samples: the speech.
      seconds: until the reverberation is 60 dB quieter (RT60).
      sample_rate: in Hz.
      rng: of the room.
    """
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    room = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    room[: round(_DIRECT * sample_rate)] = 0.0
    room /= max(np.sqrt(np.sum(room**2)), 1e-30)
    room[0] = 1.0
    wet = scipy.signal.fftconvolve(samples, room)[: len(samples)]
    return limited(wet * np.sqrt(np.mean(samples**2) / max(np.mean(wet**2), 1e-30)))


def limited(samples: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    """Returns the samples, quieter where they would be clipped."""
    peak = np.abs(samples).max(initial=0.0)
    return samples if peak <= 1.0 else samples / peak
