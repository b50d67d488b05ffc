"""A batch, or one process's share of it: shards to workers until all are done or set aside, then the lists of all.

    run(settings, LocalPool(settings), ...)

Who the workers are is the pool's business: this process (`LocalPool`) or others (`ray_pool`). Nothing that a pool knows
is needed to go on: what is done stands in the output folder.
"""

import contextlib
import dataclasses
import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from spark_jax.errors import SparkError, one_line
from spark_jax.jobs.attempt import read_journal
from spark_jax.jobs.folder import JobFolder
from spark_jax.jobs.progress import Progress
from spark_jax.jobs.shards import Schedule, Shard
from spark_jax.jobs.thread_warnings import collecting
from spark_jax.jobs.worker import Worker, WorkerSettings


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a shard that was given to a worker.

    Attributes:
      shard: the shard.
      failure: why it is not done; None: it is.
    """

    shard: Shard
    failure: str | None


@runtime_checkable
class Pool(Protocol):
    """Workers; each has `running`, the numbers of the shards that it has."""

    def seats(self) -> Sequence[Any]:
        """Returns the workers that are ready."""

    def give(self, seat: Any, shard: Shard) -> None:
        """Lets a worker begin with a shard."""

    def wait(self) -> list[Outcome]:
        """Waits until something has changed, and returns which shards have ended."""


def run(
    folder: JobFolder, shards: Sequence[Shard], pool: Pool, together: int, say: Callable[[str], Any]
) -> dict[int, str]:
    """Has all shards spoken, and returns why some are set aside, by their number.

    Args:
      folder: where they go.
      shards: that are not done.
      pool: who speaks them.
      together: shards that a worker has at a time.
      say: tells of a failure.
    """
    schedule = Schedule(shards, together)
    kept: dict[int, int] = {}  # jobs of a shard that were done when it failed before
    while schedule.left:
        for seat in pool.seats():
            while (shard := schedule.next(seat.running)) is not None:
                pool.give(seat, shard)
        for outcome in pool.wait():
            shard = outcome.shard
            if outcome.failure is None or folder.is_done(shard):
                schedule.done(shard)
                continue
            done = max((len(read_journal(attempt)) for attempt in folder.attempts(shard)), default=0)
            schedule.failed(shard, outcome.failure, done > kept.get(shard.number, 0))
            kept[shard.number] = done
            end = "set aside" if shard.number in schedule.set_aside else "tried again"
            say(f"shard {shard.number} (from line {shard.first_line}) failed, {end}: {outcome.failure}")
    return schedule.set_aside


@dataclasses.dataclass
class _Here:
    running: set[int] = dataclasses.field(default_factory=set)


class LocalPool:
    """This process, with the model on all of its devices."""

    def __init__(self, settings: WorkerSettings, progress: Progress):
        """Loads the model.

        Args:
          settings: of the worker.
          progress: is told of every job.

        Raises:
          SparkError: see `Worker`.
        """
        self._worker, self._progress, self._here = Worker(settings), progress, _Here()
        self._ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def seats(self) -> list[_Here]:
        """Returns this process."""
        return [self._here]

    def give(self, seat: _Here, shard: Shard) -> None:
        """Begins with a shard, in a thread of its own."""
        seat.running.add(shard.number)
        self._progress.begin(shard.number)
        # A daemon: the process does not wait for it when it is interrupted; what is half done can be gone on with.
        threading.Thread(target=self._speak, args=[shard], name="spark-jax shard", daemon=True).start()

    def wait(self) -> list[Outcome]:
        """Waits until something has changed, and returns which shards have ended."""
        outcome = self._ended.get()
        self._here.running.remove(outcome.shard.number)
        return [outcome]

    def _speak(self, shard: Shard) -> None:
        try:
            self._worker.speak(shard, functools.partial(self._progress.add, shard.number))
            self._ended.put(Outcome(shard, None))
        except BaseException as error:  # whoever waits must hear of it
            self._ended.put(Outcome(shard, describe(error)))


def describe(error: BaseException) -> str:
    """Returns an error in a line; one that is not of the input with its type."""
    text = one_line(error, 300)
    return text if isinstance(error, SparkError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def local_pool(settings: WorkerSettings, progress: Progress) -> Iterator[LocalPool]:
    """Loads the model here; warnings of jobs go into their records.

    Raises:
      SparkError: see `Worker`.
    """
    with collecting():
        yield LocalPool(settings, progress)
