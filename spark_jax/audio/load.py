"""Audio files in and out: read, check, resample, write."""

import io
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from spark_jax.errors import SparkError, one_line
from spark_jax.shared import files

MIN_SECONDS = 0.1
SILENCE_PEAK = 1e-4  # −80 dB of full scale, three steps of 16-bit audio: nothing can be heard below


def load_audio(path: str | os.PathLike[str], sample_rate: int) -> Float[np.ndarray, " time"]:
    """Returns the first channel of a sound file in float64, resampled to `sample_rate` (Hz).

    Reads what libsndfile reads (WAV, FLAC, OGG, MP3, …). Reference: sparktts/utils/audio.py, `load_audio`.

    Raises:
      SparkError: the file is missing, no audio, empty, or holds NaN or infinite samples.
    """
    path = Path(path)
    if not path.is_file():
        raise SparkError(f"{path}: no such audio file")
    try:
        samples, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        reason = one_line(error)
        raise SparkError(f"{path}: not readable as audio (WAV, FLAC, OGG, MP3): {reason}") from error
    if not len(samples):
        raise SparkError(f"{path}: the audio is empty")
    samples = samples[:, 0]
    _check_finite(samples, path)
    return resample(samples, rate, sample_rate)


def resample(samples: Float[np.ndarray, " time"], source: int, target: int) -> Float[np.ndarray, " resampled"]:
    """Resamples by soxr's VHQ recipe, in the dtype of the samples (float64 for parity); `source`, `target` in Hz."""
    return samples if source == target else soxr.resample(samples, source, target, quality="VHQ")


def check_reference(samples: np.ndarray, source: str | os.PathLike[str], sample_rate: int) -> None:
    """Refuses audio from which no voice and no tokens can be taken.

    Args:
      samples: amplitude in [-1, 1].
      source: what the message calls it, such as the file name.
      sample_rate: of the samples, in Hz.

    Raises:
      SparkError: shorter than 0.1 s, NaN or infinite samples, or silence.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise SparkError(f"{source}: expected one channel, found samples of shape {samples.shape}")
    seconds = len(samples) / sample_rate
    if seconds < MIN_SECONDS:
        raise SparkError(f"{source}: {seconds:.3f} s of audio, expected at least {MIN_SECONDS} s")
    _check_finite(samples, source)
    peak = np.abs(samples).max()
    if peak < SILENCE_PEAK:
        raise SparkError(f"{source}: the audio is silent (peak {peak:.1e}, audible from {SILENCE_PEAK:.0e})")


def write_wav(path: str | os.PathLike[str], samples: Float[np.ndarray, " time"], sample_rate: int) -> None:
    """Writes 16-bit PCM; see `files.open_atomic`. Samples beyond ±1 are clipped.

    Raises:
      SparkError: NaN or infinite samples, or the folder is missing or cannot be written.
    """
    path = Path(path)
    samples = np.asarray(samples, np.float64)
    _check_finite(samples, path)
    content = io.BytesIO()
    pcm = np.round(np.clip(samples, -1.0, 1.0) * 32767).astype(np.int16)
    soundfile.write(content, pcm, sample_rate, format="WAV", subtype="PCM_16")
    if not path.parent.is_dir():
        raise SparkError(f"{path}: the folder {path.parent} does not exist")
    files.write_bytes(path, content.getbuffer())


def _check_finite(samples: np.ndarray, source: str | os.PathLike[str]) -> None:
    bad = np.count_nonzero(~np.isfinite(samples))
    if bad:
        raise SparkError(f"{source}: {bad} of {samples.size} samples are NaN or infinite")
