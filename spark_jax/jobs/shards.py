"""The shards of a batch's input, and which of them comes next: runs of lines, numbered, that depend on nothing else."""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from spark_jax.errors import SparkError
from spark_jax.jobs.lines import read_id
from spark_jax.shared import files
from spark_jax.shared.json_lines import lines

MAX_FAILURES = 3


@dataclasses.dataclass(frozen=True)
class Shard:
    """A run of the input's lines.

    Attributes:
      number: of the shard, from 0.
      start, stop: its bytes.
      first_line: number of its first line, from 1.
      jobs: lines that are not blank.
      repeated: (line, first line with the same id) of those whose id was there before.
    """

    number: int
    start: int
    stop: int
    first_line: int
    jobs: int
    repeated: tuple[tuple[int, int], ...]

    def read(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Yields number and bytes of its lines.

        Raises:
          SparkError: the input cannot be read.
        """
        for number, (_, line) in enumerate(lines(path, self.start, self.stop), self.first_line):
            yield number, line


@dataclasses.dataclass(frozen=True)
class Input:
    """The input of a batch, read once.

    Attributes:
      path: the file.
      sha256: of the file.
      shards: all of them.
    """

    path: Path
    sha256: str
    shards: tuple[Shard, ...]


def read_input(path: Path, shard_size: int) -> Input:
    """Reads the input's ids and divides its lines into shards.

    Raises:
      SparkError: it cannot be read, or no line is a job.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise files.cannot_read(path, error) from error
    digest, shards = hashlib.sha256(), []
    seen: dict[bytes, int] = {}  # line by a hash of the id: a million ids of any length are some 100 MB
    numbered = enumerate(lines(path, 0, size), 1)
    while part := list(itertools.islice(numbered, shard_size)):
        repeated = []
        for number, (_, line) in part:
            digest.update(line)
            if (id := read_id(line)) is not None:
                first = seen.setdefault(hashlib.blake2b(id.encode(), digest_size=16).digest(), number)
                if first != number:
                    repeated.append((number, first))
        (first_line, (start, _)), (_, (offset, last)) = part[0], part[-1]
        jobs = sum(bool(line.strip()) for _, (_, line) in part)
        shards.append(Shard(len(shards), start, offset + len(last), first_line, jobs, tuple(repeated)))
    if not any(shard.jobs for shard in shards):
        raise SparkError(f'{path}: no job, expected a line such as {{"id": "1", "text": "Hello."}}')
    return Input(path, digest.hexdigest(), tuple(shards))


class Schedule:
    """Which shard comes next, and which has failed too often.

    A worker has several shards at a time, so that its slots stay full from one to the next. An error of one takes the
    others along; therefore a shard that has failed is tried again alone. Failures are counted from when it last got
    further: a worker that is taken away in the middle costs a shard nothing.
    """

    def __init__(self, shards: Sequence[Shard], together: int):
        """Args:
        shards: what is to be done.
        together: shards that a worker has at a time.
        """
        self._together = together
        self._fresh, self._failed = collections.deque(shards), collections.deque[Shard]()
        self._failures: dict[int, int] = {}
        self._running: set[int] = set()
        self.set_aside: dict[int, str] = {}  # why, by the shard's number

    @property
    def left(self) -> bool:
        """Returns whether there is a shard that is neither done nor set aside."""
        return bool(self._fresh or self._failed or self._running)

    def next(self, running: Collection[int]) -> Shard | None:
        """Returns the next shard for a worker that has these; None: none for now."""
        if len(running) >= self._together or any(number in self._failures for number in running):
            return None
        if self._fresh:
            shard = self._fresh.popleft()
        elif self._failed and not running:
            shard = self._failed.popleft()
        else:
            return None
        self._running.add(shard.number)
        return shard

    def done(self, shard: Shard) -> None:
        """Notes that a shard is done."""
        self._running.remove(shard.number)

    def failed(self, shard: Shard, reason: str, further: bool) -> None:
        """Notes that a shard failed; the third time it is set aside.

        Args:
          shard: the shard.
          reason: in words.
          further: more of its jobs are done than when it failed before.
        """
        self._running.remove(shard.number)
        failures = self._failures[shard.number] = (0 if further else self._failures.get(shard.number, 0)) + 1
        if failures < MAX_FAILURES:
            self._failed.append(shard)
        else:
            self.set_aside[shard.number] = reason


def share(shards: Sequence[Shard], index: int, count: int) -> list[Shard]:
    """Returns the shards of one of several processes that do not know of each other: every `count`th."""
    return list(shards[index::count])
