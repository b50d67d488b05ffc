"""A batch from its input to its lists: what `spark-jax batch` does."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from pathlib import Path

from spark_jax.inference.codec import EMBEDDED_VOICE
from spark_jax.jobs.attempt import Tally, tally_of
from spark_jax.jobs.folder import JobFolder, model_hash
from spark_jax.jobs.progress import Progress
from spark_jax.jobs.run import Pool, run
from spark_jax.jobs.shards import Shard, read_input, share
from spark_jax.jobs.worker import WorkerSettings
from spark_jax.shared.folder_lock import lock_folder

MakePool = Callable[[WorkerSettings, Progress], contextlib.AbstractContextManager[Pool]]


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a batch, or of one process's share of it.

    Attributes:
      tally: of the share's jobs, those of earlier runs included.
      seconds, elapsed: of audio that this run has made, and that it took.
      set_aside: shards that failed too often, and why.
      others_left: shards of other processes that are not finished.
    """

    tally: Tally
    seconds: float
    elapsed: float
    set_aside: dict[int, str]
    others_left: int

    @property
    def complete(self) -> bool:
        """Returns whether every job of the share has speech."""
        return not self.tally.failed and not self.set_aside


def run_batch(settings: WorkerSettings, make_pool: MakePool, index: int = 0, count: int = 1) -> Result:
    """Speaks the shards of a batch that are left, and writes the lists of the whole when none is.

    Args:
      settings: of the batch.
      make_pool: gives the workers; it is called where there is something to do.
      index, count: of this process among several that do not know of each other: it does every `count`th shard.

    Raises:
      SparkError: the input or the folder cannot be used, it is of another batch, or another run is going on in it.
    """
    source = read_input(Path(settings.source), settings.shard_size)
    shards = share(source.shards, index, count)
    folder = JobFolder(settings.output)
    folder.begin(source, _identity(settings))
    with lock_folder(folder.path, ".lock" if count == 1 else f".lock-{index}-of-{count}"):
        left = folder.left(shards)
        jobs = _jobs(shards)
        progress = Progress(jobs, jobs - _jobs(left))
        try:
            set_aside: dict[int, str] = {}
            if left:
                with make_pool(settings, progress) as pool:
                    set_aside = run(folder, left, pool, settings.together, progress.say)
        finally:
            progress.close()
        merged = folder.merge(source.shards)
        done = [shard for shard in shards if shard.number not in set_aside]
        tally = reduce(add, (tally_of(folder, shard) for shard in done), Tally())
        others = 0 if merged else len(folder.left(source.shards)) - len(set_aside)
    return Result(tally, progress.seconds, progress.elapsed, set_aside, others)


def _identity(settings: WorkerSettings) -> dict[str, str | int | bool]:
    """Returns what results depend on, beside the input."""
    names = ("slots", "dtype", "format", "transcripts", "shard_size")
    return {"model": model_hash(settings.model or EMBEDDED_VOICE)} | {name: getattr(settings, name) for name in names}


def _jobs(shards: Sequence[Shard]) -> int:
    return sum(shard.jobs for shard in shards)
