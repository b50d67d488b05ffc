"""Batches as a pure function of (seed, batch number): plans of indices, loaded by grain's threads.

A plan lists the batches of one epoch as arrays of example indices. Any batch can be made without those
before it, so the position of a run is one number, which grain's iterator saves with the checkpoint; random
crops draw from a generator seeded by (seed, batch number) and come out the same after a resume.
"""

import bisect
import threading
from collections.abc import Callable, Sequence

import grain
import numpy as np
from jaxtyping import Int

Batch = dict[str, np.ndarray]
Plan = Callable[[int], list[np.ndarray]]  # epoch → batches of example indices; -1 stands for an empty row
Load = Callable[[np.ndarray, np.random.Generator], Batch]


def shuffled_plan(num_examples: int, batch_size: int, seed: int) -> Plan:
    """Batches of one size in a new order every epoch; what does not fill a batch waits for another epoch."""

    def plan(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng((seed, epoch)).permutation(num_examples)
        if num_examples < batch_size:
            order = np.resize(order, batch_size)
        return list(order[: len(order) // batch_size * batch_size].reshape(-1, batch_size))

    return plan


def bucketed_plan(
    buckets: Int[np.ndarray, " examples"], batch_sizes: Sequence[int], seed: int | None
) -> Plan:
    """Batches whose examples share a bucket, hence a shape.

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
    """A checkpointable iterator over `num_batches` batches, epoch after epoch.

    Args:
      plan: batches of indices of each epoch.
      load: (indices, generator) → arrays whose first axis has as many rows as there are indices.
      num_batches: length of the run.
      seed: of the generators that `load` gets.
      threads: threads that load; audio decoding and numpy let go of the interpreter lock.
      prefetch: batches made ahead.
      process_index, process_count: this process loads the rows `process_index::process_count` of each batch.
    """

    def make(planned: tuple[int, np.ndarray]) -> Batch:
        number, indices = planned
        rng = np.random.default_rng((seed, number, process_index))
        return load(indices[process_index::process_count], rng)

    dataset = grain.MapDataset.source(_Planned(plan, num_batches)).map(make)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


def evaluation_batches(plan: Plan, load: Load, limit: int | None = None) -> list[Batch]:
    """The batches of epoch 0, at most `limit`, evenly picked; made once and kept in memory."""
    planned = plan(0)
    if limit is not None and limit < len(planned):
        planned = [planned[i] for i in np.linspace(0, len(planned) - 1, limit).astype(int)]
    return [load(indices, np.random.default_rng(i)) for i, indices in enumerate(planned)]


class _Planned:
    """Random access to (batch number, indices) over consecutive epochs, whose lengths may differ."""

    def __init__(self, plan: Plan, num_batches: int):
        self._plan, self._length = plan, num_batches
        self._ends: list[int] = []  # batches up to the end of each epoch planned so far
        self._recent: dict[int, list[np.ndarray]] = {}
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

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        if epoch not in self._recent:
            self._recent = {key: value for key, value in self._recent.items() if key >= epoch - 1}
            self._recent[epoch] = self._plan(epoch)
            if not self._recent[epoch]:
                raise ValueError("the plan of an epoch is empty: no example is left")
        return self._recent[epoch]

