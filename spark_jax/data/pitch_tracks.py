"""Pitch tracks of a corpus: fundamental frequency and voicing of every semantic token, beside metadata.jsonl.

The file `f0.npy` holds all tracks in a row as unsigned 16-bit integers in tenths of a hertz, 0 for unvoiced tokens. The
record of an utterance has the start and length of its track (`f0_start`, `f0_frames`). This takes two bytes per token,
9 MB for 26 hours; as text in the records it would take several times as much.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spark_jax.errors import SparkError

FILE = "f0.npy"
FIELDS = ("f0_start", "f0_frames")
HZ_PER_UNIT = 0.1


class PitchTracks:
    """Pitch tracks of a corpus folder.

    Args:
      corpus: the folder, with the file f0.npy.

    Raises:
      SparkError: the file cannot be read, or is no one-dimensional array of unsigned 16-bit integers.
    """

    def __init__(self, corpus: str | Path):
        self._path = Path(corpus) / FILE
        try:
            self._units = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SparkError(
                f"{self._path}: cannot be read as pitch tracks ({' '.join(str(error).split())})"
            ) from error
        if self._units.ndim != 1 or self._units.dtype != np.uint16:
            found = f"{self._units.dtype} {list(self._units.shape)}"
            raise SparkError(f"{self._path}: holds {found}, expected uint16 of one dimension")

    def read(self, record: Mapping[str, Any]) -> Float[np.ndarray, " tokens"]:
        """Returns the fundamental frequency of an utterance's tokens in Hz, 0 where unvoiced.

        Raises:
          SparkError: the record has no place of a track, or one outside of the file.
        """
        start, count = (record.get(field) for field in FIELDS)
        if type(start) is not int or type(count) is not int or not 0 <= start <= start + count <= len(self._units):
            where = f"f0_start {start!r} and f0_frames {count!r}"
            raise SparkError(
                f"{self._path}: {record.get('index')} has {where}, expected a place within {len(self._units)} values"
            )
        return self._units[start : start + count].astype(np.float32) * np.float32(HZ_PER_UNIT)


def fill_unvoiced(f0: Float[np.ndarray, " tokens"], default: float = 150.0) -> Float[np.ndarray, " tokens"]:
    """Replaces zeros by interpolating the logarithm between the voiced neighbors.

    Tokens before the first and after the last voiced one get their value; if none is voiced, all get `default` Hz.
    """
    (voiced,) = np.nonzero(f0)
    if not len(voiced):
        return np.full_like(f0, default)
    return np.exp(np.interp(np.arange(len(f0)), voiced, np.log(f0[voiced]))).astype(f0.dtype)


def pitch_fields(track: Float[np.ndarray, " tokens"], start: int, count: int) -> dict[str, np.ndarray]:
    """Returns the pitch of a segment for a batch of the codec's training (`bicodec.pitch.PitchTarget`).

    Args:
      track: pitch of the whole utterance in Hz, 0 where unvoiced.
      start: number of the segment's first token.
      count: number of tokens; those beyond the utterance are unvoiced.

    Returns:
      `f0` and `f0_filled` [count], and `f0_mean` [], the geometric mean over the utterance's voiced tokens, 0 if there
      are none; float32.
    """
    voiced = track[track > 0]
    missing = max(start + count - len(track), 0)
    filled = np.pad(fill_unvoiced(track), (0, missing), mode="edge" if len(track) else "constant")
    return {
        "f0": np.pad(track, (0, missing))[start : start + count].astype(np.float32),
        "f0_filled": filled[start : start + count].astype(np.float32),
        "f0_mean": np.asarray(np.exp(np.mean(np.log(voiced))) if len(voiced) else 0.0, np.float32),
    }
