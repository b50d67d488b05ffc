"""How far a batch is: a bar with the audio seconds a second and the time left, where somebody looks."""

import sys
import threading
import time

from tqdm import tqdm

from spark_jax.jobs.attempt import Tally


class Progress:
    """Counts what becomes of jobs, by shards: one that is tried again begins anew. Any thread may tell of them."""

    def __init__(self, total: int, done: int):
        """Args:
        total: jobs of all shards.
        done: jobs of those that are finished.
        """
        self._lock = threading.Lock()
        self._shards: dict[int, Tally] = {}
        self._start = time.perf_counter()
        self._bar = tqdm(total=total, initial=done, disable=None, unit=" jobs", smoothing=0.05)
        self._seconds = 0.0

    def begin(self, shard: int) -> None:
        """Notes that a shard is begun, perhaps again."""
        with self._lock:
            before = self._shards.pop(shard, Tally())
            self._bar.update(-before.spoken - before.failed)

    def add(self, shard: int, tally: Tally) -> None:
        """Adds what became of some of a shard's jobs; the audio is what was made now, not by an earlier run."""
        with self._lock:
            self._shards[shard] = self._shards.get(shard, Tally()) + tally
            self._seconds += tally.seconds
            if not self._bar.disable:
                self._bar.set_postfix_str(f"{self.rate:.1f} s of audio a second", refresh=False)
            self._bar.update(tally.spoken + tally.failed)

    @property
    def seconds(self) -> float:
        """Returns the seconds of audio that were made."""
        return self._seconds

    @property
    def elapsed(self) -> float:
        """Returns the seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def rate(self) -> float:
        """Returns the audio seconds a second."""
        return self._seconds / max(self.elapsed, 1e-9)

    def say(self, message: str) -> None:
        """Writes a line on standard error, above the bar."""
        with self._lock:
            tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
