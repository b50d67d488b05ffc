"""Audio files of a corpus: their lengths and samples. What nothing can be learned from is told with its reason."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

from spark_jax.audio.load import SILENCE_PEAK, resample
from spark_jax.errors import SparkError, one_line

THREADS = 8  # that look at the headers of files: they wait for the disk
_RATES = range(1_000, 768_001)  # Hz; others stand in damaged headers
_KNOWN_FRAMES = 1 << 40  # a header of more than that does not know how long its file is
_BLOCK = 1 << 18  # frames read at a time: a header alone never makes room for what it promises


class UnusableAudioError(SparkError):
    """A file of a corpus that nothing can be learned from.

    Attributes:
      reason: under which it is counted.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def read_audio(path: str | Path | io.BytesIO, sample_rate: int, name: str | None = None) -> Float[np.ndarray, " time"]:
    """Reads one channel of a corpus file as float32, resampled to `sample_rate` (Hz) where it has another.

    Of several channels the first counts, or the loudest where the first is silent.

    Args:
      path: of the file, or its open content, which `name` names in errors.

    Raises:
      UnusableAudioError: no such file, no audio, without samples, silent, or with samples that are NaN or infinite.
    """
    name = str(path) if name is None else name
    with _open(path, name) as file:
        try:
            samples, peaks = _channel(file, 0)
            if peaks.size and peaks[0] < SILENCE_PEAK <= peaks.max():
                file.seek(0)
                samples, _ = _channel(file, int(peaks.argmax()))
        except (OSError, soundfile.SoundFileError, MemoryError) as error:
            raise _unreadable(name, error) from error
        rate = file.samplerate
    if not len(samples):
        raise UnusableAudioError("no samples", f"{name}: no sample")
    if bad := np.count_nonzero(~np.isfinite(samples)):
        raise UnusableAudioError("not finite", f"{name}: {bad} of {len(samples)} samples are NaN or infinite")
    if peaks.max() < SILENCE_PEAK:
        raise UnusableAudioError("silent", f"{name}: silent (peak {peaks.max():.1e}, audible from {SILENCE_PEAK:.0e})")
    return resample(samples, rate, sample_rate)


def audio_length(path: str | Path, sample_rate: int) -> int:
    """Returns the samples that a file has at `sample_rate`, by its header; it is read where that does not say.

    Raises:
      UnusableAudioError: as `read_audio`, as far as the header tells.
    """
    with _open(path, str(path)) as file:
        frames, rate = file.frames, file.samplerate
    if 0 < frames < _KNOWN_FRAMES:
        return -(-frames * sample_rate // rate)
    return len(read_audio(path, sample_rate))


def audio_lengths(paths: Sequence[str | Path], sample_rate: int) -> list[int | UnusableAudioError]:
    """Returns the `audio_length` of each file, or why it has none."""

    def length(path: str | Path) -> int | UnusableAudioError:
        try:
            return audio_length(path, sample_rate)
        except UnusableAudioError as fault:
            return fault

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(length, paths))


def _open(path: str | Path | io.BytesIO, name: str) -> soundfile.SoundFile:
    if not isinstance(path, io.BytesIO) and not Path(path).exists():
        raise UnusableAudioError("no such file", f"{name}: no such file")
    try:
        file = soundfile.SoundFile(path)
    except (OSError, ValueError, TypeError, soundfile.SoundFileError) as error:
        raise _unreadable(name, error) from error
    if file.samplerate not in _RATES:
        file.close()
        raise UnusableAudioError("unreadable audio", f"{name}: sample rate {file.samplerate}, expected 1 to 768 kHz")
    return file


def _channel(file: soundfile.SoundFile, number: int) -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, "_"]]:
    """The samples of a channel from where the file stands to its end, and the peak of each channel; NaN counts as 0."""
    parts, peaks = [np.zeros(0, np.float32)], np.zeros(file.channels, np.float32)
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        parts.append(block[:, number].copy())
        peaks = np.maximum(peaks, np.nan_to_num(np.abs(block), nan=0.0).max(axis=0))
    return np.concatenate(parts), peaks


def _unreadable(name: str, error: BaseException) -> UnusableAudioError:
    return UnusableAudioError("unreadable audio", f"{name}: cannot be read as audio ({one_line(error, 300)})")
