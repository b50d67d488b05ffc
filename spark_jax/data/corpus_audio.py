"""Audio files of a corpus: their lengths and samples. What nothing can be learned from is told with its reason."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from spark_jax.audio.containers import MissingDecoderError, Sound, open_sound
from spark_jax.audio.load import SILENCE_PEAK, resample
from spark_jax.errors import SparkError

T = TypeVar("T")

THREADS = 8  # that look at the headers of files: they wait for the disk
_WHOLE = 0.98  # of the samples that a header says: the text of a file that ends before them says more than is heard


class UnusableAudioError(SparkError):
    """A file of a corpus that nothing can be learned from.

    Attributes:
      reason: under which it is counted.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def read_audio(
    source: str | os.PathLike[str] | bytes, sample_rate: int, name: str | None = None
) -> Float[np.ndarray, " time"]:
    """Reads one channel of a corpus file as float32, resampled to `sample_rate` (Hz) where it has another.

    Reads what `containers.open_sound` opens. Of several channels the first counts, or the loudest where the first is
    silent.

    Args:
      source: path of the file, or its content.
      name: what errors call it; None: by its path.

    Raises:
      UnusableAudioError: no such file, no audio, a decoder that is not installed, without samples, cut off, silent, or
        with samples that are NaN or infinite.
    """
    name = os.fspath(source) if name is None else name
    samples, peaks, rate = _channel(source, name, 0)
    if peaks[0] < SILENCE_PEAK <= peaks.max():
        samples, _, _ = _channel(source, name, int(peaks.argmax()))
    if not len(samples):
        raise UnusableAudioError("no samples", f"{name}: no sample")
    if bad := np.count_nonzero(~np.isfinite(samples)):
        raise UnusableAudioError("not finite", f"{name}: {bad} of {len(samples)} samples are NaN or infinite")
    if peaks.max() < SILENCE_PEAK:
        raise UnusableAudioError("silent", f"{name}: silent (peak {peaks.max():.1e}, audible from {SILENCE_PEAK:.0e})")
    return resample(samples, rate, sample_rate)


def audio_length(path: str | os.PathLike[str], sample_rate: int) -> int:
    """Returns the samples that a file has at `sample_rate`, by its header; it is read where that does not say.

    Raises:
      UnusableAudioError: as `read_audio`, as far as the header tells.
    """
    frames, rate = _opened(path, os.fspath(path), lambda sound: (sound.frames, sound.rate))
    return len(read_audio(path, sample_rate)) if frames is None else -(-frames * sample_rate // rate)


def audio_lengths(paths: Sequence[str | os.PathLike[str]], sample_rate: int) -> list[int | UnusableAudioError]:
    """Returns the `audio_length` of each file, or why it has none."""

    def length(path: str | os.PathLike[str]) -> int | UnusableAudioError:
        try:
            return audio_length(path, sample_rate)
        except UnusableAudioError as fault:
            return fault

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(length, paths))


def _opened(source: str | os.PathLike[str] | bytes, name: str, look: Callable[[Sound], T]) -> T:
    """Returns what is seen of a file while it is open."""
    if not isinstance(source, bytes) and not Path(source).exists():
        raise UnusableAudioError("no such file", f"{name}: no such file")
    try:
        with open_sound(source, name) as sound:
            return look(sound)
    except UnusableAudioError:
        raise
    except MissingDecoderError as error:
        raise UnusableAudioError("no decoder", str(error)) from error
    except (SparkError, MemoryError) as error:
        message = str(error) if isinstance(error, SparkError) else f"{name}: does not fit into memory"
        raise UnusableAudioError("unreadable audio", message) from error


def _channel(
    source: str | os.PathLike[str] | bytes, name: str, number: int
) -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, " channels"], int]:
    """Returns the samples of a channel, the peak of each channel, where NaN counts as 0, and the sample rate."""

    def read(sound: Sound) -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, " channels"], int]:
        parts, peaks = [np.zeros(0, np.float32)], np.zeros(sound.channels)
        for block in sound.blocks:
            with np.errstate(over="ignore"):
                parts.append(block[:, number].astype(np.float32))
            peaks = np.maximum(peaks, np.nan_to_num(np.abs(block), nan=0.0).max(axis=0, initial=0.0))
        samples = np.concatenate(parts)
        if sound.frames is not None and len(samples) < _WHOLE * sound.frames:
            message = f"{name}: cut off: {len(samples)} of the {sound.frames} samples that its header says"
            raise UnusableAudioError("cut off", message)
        return samples, peaks, sound.rate

    return _opened(source, name, read)
