"""Audio that is written while it is made: 16-bit samples, without an end that is known before.

A WAV file can be opened at any time: its header says how much is there so far. What is no file that could be changed
later, as a pipe, and a `.pcm` file get the samples alone: one channel, signed, little-endian.
"""

import os
import wave
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from jaxtyping import Float

from spark_jax.errors import SparkError
from spark_jax.shared import files

EXTENSIONS = (".wav", ".pcm")


def check_growing(path: str | os.PathLike[str]) -> None:
    """Checks that audio can be written to a path while it is made.

    Raises:
      SparkError: the extension is another one.
    """
    if not files.is_device(path) and Path(path).suffix.lower() not in EXTENSIONS:
        raise SparkError(f"{path}: a stream is written as {' or '.join(EXTENSIONS)}, or to standard output as samples")


def pcm16(samples: Float[np.ndarray, "_"]) -> bytes:
    """Returns samples in [-1, 1], clipped, as signed 16-bit integers, little-endian."""
    return np.round(np.clip(np.asarray(samples, np.float64), -1.0, 1.0) * 32767).astype("<i2").tobytes()


class GrowingAudio:
    """An open file of audio; every `write` can be read at once."""

    def __init__(self, path: str | os.PathLike[str], sample_rate: int):
        """Opens or empties a file.

        Args:
          path: see `check_growing`.
          sample_rate: Hz.

        Raises:
          SparkError: the extension is unknown, or the file cannot be written.
        """
        check_growing(path)
        self._path = path
        try:
            self._file: BinaryIO = files.open_device(path) if files.is_device(path) else open(path, "wb")  # noqa: SIM115
        except OSError as error:
            raise files.cannot_write(path, error) from error
        self._wave = None
        if not files.is_device(path) and Path(path).suffix.lower() == ".wav":
            self._wave = wave.open(self._file, "wb")  # noqa: SIM115
            self._wave.setnchannels(1)
            self._wave.setsampwidth(2)
            self._wave.setframerate(sample_rate)
            self.write(np.zeros(0, np.float32))

    def write(self, samples: Float[np.ndarray, "_"]) -> None:
        """Adds samples.

        Raises:
          SparkError: the file cannot be written, or nobody reads the pipe any more.
        """
        try:
            (self._file.write if self._wave is None else self._wave.writeframes)(pcm16(samples))
            self._file.flush()
        except OSError as error:
            raise files.cannot_write(self._path, error) from error

    def close(self) -> None:
        """Ends the file."""
        if self._wave is not None:
            self._wave.close()
        self._file.close()

    def __enter__(self) -> "GrowingAudio":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
