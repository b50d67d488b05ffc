"""Batches as a pure function of (seed, batch number): plans of indices, loaded by grain's threads.

A plan gives the batches of one epoch as arrays of example indices. Any batch can be made without those
before it, so the position of a run is one number, which grain's iterator saves with the checkpoint. Random
crops and noise draw from a generator for each row, seeded by (seed, batch number, row): they come out the same
after a resume, and on any number of processes.
"""

import bisect
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
from jaxtyping import Float, Int

from spark_jax.errors import SparkError

Batch = dict[str, np.ndarray]
Epoch = Sequence[np.ndarray] | Int[np.ndarray, "batches rows"]  # batches of example indices; -1: an empty row
Plan = Callable[[int], Epoch]
Load = Callable[[np.ndarray, Sequence[np.random.Generator]], Batch]

WEIGHTS_CHUNK = 1 << 20  # examples whose weights exist at a time


def weighted_order(
    weights: Iterable[Float[np.ndarray, "_"]], rng: np.random.Generator | None
) -> Int[np.ndarray, " drawn"]:
    """Draws the examples of one epoch in their order: a permutation of all, 4 bytes an example.

    Args:
      weights: of the examples, chunk after chunk: how often each comes. Of a fraction, another part is drawn for
        every epoch.
      rng: of the epoch; None: every example of positive weight once, in the given order.
    """
    chosen, first = [np.zeros(0, np.int32)], 0
    for chunk in weights:
        numbers = np.arange(first, first + len(chunk), dtype=np.int32)
        first += len(chunk)
        if rng is None:
            copies = chunk > 0
        else:
            copies = np.floor(chunk)
            fractional = np.flatnonzero(copies != chunk)
            copies[fractional] += rng.random(len(fractional)) < (chunk - copies)[fractional]
        chosen.append(np.repeat(numbers, copies.astype(np.int64)))
    order = np.concatenate(chosen)
    if rng is not None:
        rng.shuffle(order)
    return order


def shuffled_plan(num_examples: int, batch_size: int, seed: int) -> Plan:
    """Plans batches of one size in a new order every epoch; what does not fill a batch waits for another epoch."""
    return weighted_plan(lambda: [np.ones(num_examples)], batch_size, seed)


def weighted_plan(weights: Callable[[], Iterable[np.ndarray]], batch_size: int, seed: int) -> Plan:
    """Plans as `shuffled_plan`, but some examples come more often: `weights` gives those of `weighted_order`."""

    def plan(epoch: int) -> Epoch:
        order = weighted_order(weights(), np.random.default_rng((seed, epoch)))
        if 0 < len(order) < batch_size:
            order = np.resize(order, batch_size)
        return order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)

    return plan


def bucketed_plan(buckets: Int[np.ndarray, " examples"], batch_sizes: Sequence[int], seed: int | None) -> Plan:
    """Plans batches whose examples share a bucket, hence a shape.

    Args:
      buckets: bucket of each example; -1: left out.
      batch_sizes: rows of a batch of each bucket; a last incomplete batch is filled with empty rows (-1).
      seed: of the order within buckets and of the order of batches; None: the given order, for evaluation.
    """
    members = [np.flatnonzero(buckets == bucket) for bucket in range(len(batch_sizes))]

    def plan(epoch: int) -> list[np.ndarray]:
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        batches = []
        for indices, size in zip(members, batch_sizes, strict=True):
            if rng is not None:
                indices = rng.permutation(indices)
            filled = np.full(-(-len(indices) // size) * size, -1)
            filled[: len(indices)] = indices
            batches += list(filled.reshape(-1, size))
        if rng is not None:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    return plan


def batches(
    plan: Plan,
    load: Load,
    num_batches: int,
    seed: int,
    *,
    threads: int = 2,
    prefetch: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Returns a checkpointable iterator over `num_batches` batches, epoch after epoch.

    Args:
      plan: batches of indices of each epoch.
      load: (indices, generator) → arrays whose first axis has as many rows as there are indices.
      num_batches: length of the run.
      seed: of the generators that `load` gets, one for each row.
      threads: threads that load; audio decoding and numpy let go of the interpreter lock.
      prefetch: batches made ahead.
      process_index, process_count: this process loads its share of each batch's rows, the first process the first
        ones: together they load the batch of a single process.

    Raises:
      SparkError: (when a batch is made) the processes do not divide its rows.
    """

    def make(planned: tuple[int, np.ndarray]) -> Batch:
        number, indices = planned
        return _load_share(load, indices, (seed, number), process_index, process_count)

    dataset = grain.MapDataset.source(_Planned(plan, num_batches)).map(make)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


def evaluation_batches(
    plan: Plan,
    load: Load,
    limit: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 1,
) -> list[Batch]:
    """Makes the batches of epoch 0, at most `limit`, evenly picked, and keeps them in memory.

    A process makes its share of the rows, as in `batches`, and `threads` load a batch each.
    """
    planned = plan(0)
    if limit is None or limit > len(planned):
        limit = len(planned)
    picked = [planned[i] for i in np.linspace(0, len(planned) - 1, limit).astype(int)]
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        make = lambda i: _load_share(load, picked[i], (i,), process_index, process_count)  # noqa: E731
        return list(pool.map(make, range(limit)))


def _load_share(load: Load, indices: np.ndarray, seed: tuple[int, ...], index: int, count: int) -> Batch:
    share, rest = divmod(len(indices), count)
    if rest:
        raise SparkError(f"a batch has {len(indices)} rows, expected a multiple of the {count} processes")
    rows = range(index * share, (index + 1) * share)
    return load(indices[rows.start : rows.stop], [np.random.default_rng((*seed, row)) for row in rows])


class _Planned:
    """Random access to (batch number, indices) over consecutive epochs, whose lengths may differ."""

    def __init__(self, plan: Plan, num_batches: int):
        self._plan, self._length = plan, num_batches
        self._ends: list[int] = []  # batches up to the end of each epoch planned so far
        self._recent: dict[int, Sequence[np.ndarray]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Planned({self._length})"

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:
        with self._lock:
            while not self._ends or number >= self._ends[-1]:
                planned = self._epoch(len(self._ends))
                self._ends.append((self._ends[-1] if self._ends else 0) + len(planned))
            epoch = bisect.bisect_right(self._ends, number)
            first = self._ends[epoch - 1] if epoch else 0
            return number, self._epoch(epoch)[number - first]

    def _epoch(self, epoch: int) -> Epoch:
        if epoch not in self._recent:
            self._recent = {key: value for key, value in self._recent.items() if key >= epoch - 1}
            self._recent[epoch] = self._plan(epoch)
            if not len(self._recent[epoch]):
                raise SparkError("the plan of an epoch is empty: no example is left")
        return self._recent[epoch]
