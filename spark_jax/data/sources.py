"""The parts of a mixture: where they lie, one numbering over all of them, and what is left out of them by reason."""

import glob
import logging
import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from spark_jax.data.config import SourceConfig, Sources
from spark_jax.data.pipeline import WEIGHTS_CHUNK
from spark_jax.errors import SparkError
from spark_jax.shared.files import cannot_write, read_json, write_json

T = TypeVar("T")

WARNINGS = 10  # of one reason


def expand(sources: Sources) -> list[SourceConfig]:
    """Returns the sources of a configuration, with patterns replaced by the paths that they match.

    Raises:
      SparkError: no source, a weight that is not positive, or a pattern that matches nothing.
    """
    if isinstance(sources, str):
        sources = (SourceConfig(sources),)
    if not sources:
        raise SparkError("the list of sources is empty, expected a path or [{path: …, weight: …}, …]")
    found = []
    for source in sources:
        if isinstance(source.weight, bool) or not (math.isfinite(source.weight) and source.weight > 0):
            raise SparkError(f"source {source.path}: weight is {source.weight!r}, expected a positive number")
        pattern = glob.has_magic(source.path) and not Path(source.path).exists()
        paths = sorted(glob.glob(source.path)) if pattern else [source.path]
        if not paths:
            raise SparkError(f"{source.path}: matches nothing")
        found += [SourceConfig(path, source.weight) for path in paths]
    return found


class Concatenated(Generic[T]):
    """Sources of examples one after the other, under one numbering. A source has a length and `weights`."""

    def __init__(self, sources: Sequence[T]):
        self.sources = list(sources)
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def parts(self, numbers: Int[np.ndarray, " some"]) -> Iterator[tuple[T, np.ndarray, np.ndarray]]:
        """Yields every source that is asked: (source, positions in `numbers`, the source's own numbers)."""
        owners = np.searchsorted(self._ends, numbers, side="right")
        for owner in np.unique(owners).tolist():
            positions = np.flatnonzero(owners == owner)
            yield self.sources[owner], positions, numbers[positions] - (self._ends[owner] - len(self.sources[owner]))

    def weights(self) -> Iterator[Float[np.ndarray, " examples"]]:
        """Yields the weights of all examples, a chunk at a time."""
        for source in self.sources:
            for start in range(0, len(source), WEIGHTS_CHUNK):
                yield source.weights(start, min(start + WEIGHTS_CHUNK, len(source)))


class DropCounter:
    """What a source leaves out, counted by reason; and what to do about an example that cannot be used.

    Args:
      on_error: "raise", or "skip": count it and go on. The first ten of a reason are also warnings in the log.

    Attributes:
      skips: whether faults are counted.
      counts: what is left out, by reason.
      faults: how much of it was at fault, and not left out by a setting or a limit.
    """

    def __init__(self, on_error: Literal["raise", "skip"] = "raise"):
        self.skips = on_error == "skip"
        self.counts: Counter[str] = Counter()
        self.faults = 0
        self._lock = threading.Lock()

    def add(self, reason: str, count: int = 1) -> None:
        """Counts examples that are left out for a reason."""
        if count:
            with self._lock:
                self.counts[reason] += count

    def fault(self, reason: str, error: SparkError) -> None:
        """Raises the error, or counts it under the reason."""
        if not self.skips:
            raise error
        self.add(reason)
        with self._lock:
            self.faults += 1
        if self.counts[reason] <= WARNINGS:
            logging.getLogger(__name__).warning("skipped: %s", error)


@runtime_checkable
class Summarized(Protocol):
    """A part of a run's data.

    Attributes:
      dropped: what is left out, by reason; it grows by what is skipped when it is read.
    """

    @property
    def dropped(self) -> Mapping[str, int]: ...

    def summary(self) -> dict[str, Any]:
        """Returns figures of an epoch, and `dropped`."""


class DataReport:
    """What the parts of a run's data have and what is left out of them, in a JSON file that `update` keeps up to date.

    Args:
      path: of the file; None: there is none.
      parts: of the data, by name.

    Raises:
      SparkError: the file cannot be written.
    """

    def __init__(self, path: Path | None, parts: Mapping[str, Summarized]):
        self._path, self._parts = path, dict(parts)
        self._summaries = {name: part.summary() for name, part in parts.items()}
        self._at_start = self._total()
        self._before = self._read()
        self._write()

    def line(self) -> str:
        """Returns one line for the start of a run; it also tells whether the data has changed since an earlier one."""
        lines = []
        for name, summary in self._summaries.items():
            figures = ", ".join(
                f"{value:,.{0 if value >= 100 else 2}f} {unit}" for unit, value in summary.items() if unit != "dropped"
            )
            lines.append(f"{name}: {figures} an epoch, {describe(summary['dropped'])}")
        if self._before is not None and _figures(self._before) != _figures(self._summaries):
            lines.append(f"{self._path} had other figures before: a run that goes on does so in other batches")
        return "; ".join(lines)

    def update(self) -> dict[str, int]:
        """Writes the file again if more is left out than before: this process has skipped what it could not read.

        Returns:
          `skipped_records`, how often that was since the report was made; empty for never.

        Raises:
          SparkError: it cannot be written.
        """
        before = self._total()
        for name, part in self._parts.items():
            self._summaries[name]["dropped"] = part.dropped
        if self._total() > before:
            self._write()
        skipped = self._total() - self._at_start
        return {"skipped_records": skipped} if skipped else {}

    def _read(self) -> dict[str, dict[str, Any]] | None:
        """What an earlier start of the run has written."""
        try:
            return None if self._path is None else read_json(self._path)
        except SparkError:
            return None

    def _total(self) -> int:
        return sum(sum(summary["dropped"].values()) for summary in self._summaries.values())

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        write_json(self._path, self._summaries)


def _figures(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: part[key] for key in part if key != "dropped"} for name, part in summaries.items()}


def describe(dropped: Mapping[str, int]) -> str:
    """Returns counts by reason as one line."""
    if not dropped:
        return "nothing dropped"
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return f"{sum(dropped.values())} dropped ({reasons})"


def total(counts: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """Adds up counts by reason."""
    return dict(sum((Counter(part) for part in counts), Counter()))
