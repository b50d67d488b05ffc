"""Pitch tracks of a corpus: F0 and voicing of every semantic token, in one file beside metadata.jsonl.

`f0.npy` holds all tracks end to end as unsigned 16-bit integers, tenths of a hertz, 0 where a token is unvoiced; the
record of an utterance says where its own begins and how long it is (`f0_start`, `f0_frames`). That is two
bytes a token, 9 MB for 26 hours, which as numbers in the records would be several times as much text.
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
    """The pitch tracks of a corpus folder.

    Args:
      corpus: folder with f0.npy.

    Raises:
      SparkError: the file cannot be read, or holds anything but a row of unsigned 16-bit integers.
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
        """Returns the F0 of an utterance's tokens in Hz, float32, 0 where unvoiced.

        Raises:
          SparkError: the record does not say where its track is, or says a place outside of the file.
        """
        start, count = (record.get(field) for field in FIELDS)
        if type(start) is not int or type(count) is not int or not 0 <= start <= start + count <= len(self._units):
            where = f"f0_start {start!r} and f0_frames {count!r}"
            raise SparkError(
                f"{self._path}: {record.get('index')} has {where}, expected a place within {len(self._units)} values"
            )
        return self._units[start : start + count].astype(np.float32) * np.float32(HZ_PER_UNIT)


def fill_unvoiced(f0: Float[np.ndarray, " tokens"], default: float = 150.0) -> Float[np.ndarray, " tokens"]:
    """Replaces zeros by what lies between their voiced neighbors, interpolated in the logarithm.

    Before the first and after the last voiced token it is their own value; with none voiced, `default` Hz.
    """
    (voiced,) = np.nonzero(f0)
    if not len(voiced):
        return np.full_like(f0, default)
    return np.exp(np.interp(np.arange(len(f0)), voiced, np.log(f0[voiced]))).astype(f0.dtype)


def pitch_fields(track: Float[np.ndarray, " tokens"], start: int, count: int) -> dict[str, np.ndarray]:
    """What a batch of the codec's training says of the pitch of a segment (`bicodec.pitch.PitchTarget`).

    Args:
      track: of the whole utterance in Hz, 0 where unvoiced.
      start: first token of the segment.
      count: its tokens; beyond the utterance they are unvoiced.

    Returns:
      `f0` and `f0_filled` [count], and `f0_mean`, the geometric mean of the utterance's voiced tokens, 0 with none.
    """
    voiced = track[track > 0]
    missing = max(start + count - len(track), 0)
    filled = np.pad(fill_unvoiced(track), (0, missing), mode="edge" if len(track) else "constant")
    return {
        "f0": np.pad(track, (0, missing))[start : start + count].astype(np.float32),
        "f0_filled": filled[start : start + count].astype(np.float32),
        "f0_mean": np.float32(np.exp(np.mean(np.log(voiced))) if len(voiced) else 0.0),
    }
