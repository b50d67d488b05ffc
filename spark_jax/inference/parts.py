"""Which part of an utterance can be made into samples, while its tokens still come.

A part needs the tokens that it is heard with on both sides: the look-ahead. With all of it the parts joined are the
speech that the whole gives; a shorter one is an approximation, whose parts overlap and are cross-faded. Parts depend
on the number of tokens alone and not on when they come, so that a stream has the same samples every time.

No model and no JAX.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from spark_jax.errors import SparkError

LATENCIES = ("exact", "low")
FADE = 1  # tokens in which two approximate parts overlap


def check_latency(latency: str) -> None:
    """Checks that there is such a latency.

    Raises:
      SparkError: there is not.
    """
    if latency not in LATENCIES:
        raise SparkError(f"latency is {latency!r}, expected {' or '.join(LATENCIES)}")


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """How speech is divided into parts.

    Attributes:
      parts: tokens of the first parts of a stream, ascending; the last holds for all that follow. Each is a program of
        the vocoder.
      look_ahead: tokens after a part of a stream of low latency.
      rows: streams that are vocoded together; None: 8, on CPUs, where it gains nothing, 1.

    Raises:
      SparkError: from the constructor, for numbers that are out of range.
    """

    parts: tuple[int, ...] = (12, 24, 48, 96)
    look_ahead: int = 12
    rows: int | None = None

    def __post_init__(self):
        if not self.parts or min(self.parts) <= FADE or list(self.parts) != sorted(set(self.parts)):
            raise SparkError(f"stream: parts is {self.parts}, expected ascending numbers above {FADE}")
        if self.look_ahead < 1:
            raise SparkError(f"stream: look_ahead is {self.look_ahead}, expected 1 or more")
        if self.rows is not None and self.rows < 1:
            raise SparkError(f"stream: rows is {self.rows}, expected 1 or more")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of an utterance.

    Attributes:
      first: its first token.
      size: tokens that are vocoded from there on, one of the settings'.
      known: the first token that it may not know of; the utterance seems to end there.
      advance: how many tokens after `first` the next part begins.
      last: there is no next part.
    """

    first: int
    size: int
    known: int
    advance: int
    last: bool


class Utterance:
    """The tokens of an utterance as they come, and its parts one after the other."""

    def __init__(self, sizes: Sequence[int], look_ahead: int, fade: int = 0):
        """Args:
        sizes: see `StreamSettings.parts`.
        look_ahead: tokens that a part needs after its own.
        fade: tokens at the end of each part that the next one begins with.
        """
        self._sizes, self._look_ahead, self._fade = tuple(sizes), look_ahead, fade
        self._ids: list[int] = []
        self._first, self._number, self._ended = 0, 0, False

    def extend(self, ids: Int[np.ndarray, " new"]) -> None:
        """Takes more tokens."""
        self._ids += ids.tolist()

    def end(self) -> None:
        """Says that no more tokens come."""
        self._ended = True

    @property
    def over(self) -> bool:
        """Returns whether all parts were taken."""
        return self._ended and self._first >= len(self._ids)

    def next_part(self) -> Part | None:
        """Returns the next part; None: its look-ahead has not come yet, or there is none."""
        size, left = self._sizes[min(self._number, len(self._sizes) - 1)], len(self._ids) - self._first
        known = self._first + size + self._look_ahead
        if known <= len(self._ids):
            return Part(self._first, size, known, size - self._fade, False)
        if not self._ended or not left:
            return None
        if left <= self._sizes[-1]:
            return Part(self._first, next(size for size in self._sizes if size >= left), len(self._ids), left, True)
        return Part(self._first, self._sizes[-1], len(self._ids), self._sizes[-1] - self._fade, False)

    def take(self, part: Part) -> None:
        """Goes on behind a part."""
        self._first += part.advance
        self._number += 1

    def window(
        self, part: Part, before: int, after: int
    ) -> tuple[Int[np.ndarray, " window"], Bool[np.ndarray, " window"]]:
        """Returns the tokens of a part with some around it, and which of them it knows."""
        places = np.arange(part.first - before, part.first + part.size + after)
        known = (places >= 0) & (places < part.known)
        ids = np.asarray(self._ids, np.int32)
        return np.where(known, ids[np.clip(places, 0, len(ids) - 1)], 0).astype(np.int32), known


def cross_fade(old: Float[np.ndarray, " fade"], new: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    """Returns new samples whose beginning comes out of the end of the old ones."""
    weight = np.linspace(0.0, 1.0, len(old) + 2, dtype=np.float32)[1:-1]
    count = min(len(old), len(new))  # an utterance may end within the overlap
    begin = old[:count] * (1 - weight[:count]) + new[:count] * weight[:count]
    return np.concatenate([begin, new[count:]])
