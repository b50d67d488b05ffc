"""Packing of sequences into rows of one length, for epochs of any size.

The order of an epoch is a permutation of its sequences, a function of (seed, epoch) alone. It is packed block by
block when a row of the block is asked for; every block has as many rows as the others, so that a batch's number says
which blocks its rows lie in: no process packs an epoch before its first step.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from spark_jax.errors import SparkError

BLOCK = 65_536  # sequences; 0.2 s of packing, and small beside the whole order

# Blocks hold equally many sequences, not equally many tokens. Their rows are those that the first block needs and
# room for three standard deviations of the difference between two blocks.
_DEVIATIONS = 3.0


def pack(lengths: Int[np.ndarray, " sequences"], row_length: int) -> list[Int[np.ndarray, "_"]]:
    """Packs by best fit, longest first: each sequence goes to the row in which it leaves least room.

    Args:
      lengths: tokens of each sequence, 1 to `row_length`.

    Returns:
      The indices (into `lengths`) of each row's sequences; each index once.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    by_room: list[list[list[int]]] = [[] for _ in range(row_length + 1)]  # open rows by what is left in them
    rooms = 0  # bit r: a row with r tokens left is open; the lowest set bit from `length` on is the best fit
    rows: list[list[int]] = []
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            row, room = [], row_length
            rows.append(row)
        row.append(index)
        room -= length
        if room:
            by_room[room].append(row)
            rooms |= 1 << room
    return [np.array(row) for row in rows]


class PackedEpoch(Sequence):
    """The batches of one epoch; batch n is an array of `rows` arrays of sequences.

    An epoch of one block holds every sequence of the order, its last rows filling a batch or waiting for another
    epoch. In one of several blocks, the rows of a block that has more than the others (few, see `_DEVIATIONS`) wait
    too, and a block that has less ends in empty rows; rows are shuffled within their block.

    Args:
      order: sequences in the order of the epoch; one may occur more than once.
      lengths: sequences → tokens of each.
      row_length: tokens of a row.
      rows: of a batch.
      seed: of the shuffles within blocks; None (evaluation): rows keep their order, and a last batch is filled up
        with empty rows.

    Raises:
      SparkError: there is nothing to pack.
    """

    def __init__(
        self,
        order: Int[np.ndarray, " order"],
        lengths: Callable[[Int[np.ndarray, " some"]], Int[np.ndarray, " some"]],
        row_length: int,
        rows: int,
        seed: tuple[int, ...] | None,
        block: int = BLOCK,
    ):
        if not len(order):
            raise SparkError("no sequence was drawn for this epoch: all weights are small")
        self._order, self._lengths, self._row_length, self._rows, self._seed = order, lengths, row_length, rows, seed
        count = -(-len(order) // block)
        self._bounds = np.arange(count + 1) * len(order) // count
        self._blocks: dict[int, np.ndarray] = {}
        first = self._packed(0)
        self._block_rows = len(first)
        if count > 1:
            sizes = lengths(order[: self._bounds[1]])
            spread = np.sqrt(2 * len(sizes)) * sizes.std() / row_length
            self._block_rows += int(np.ceil(_DEVIATIONS * spread))
        self._keep(0, first)
        total = count * self._block_rows
        if seed is None or total < rows:
            total = -(-total // rows) * rows
        self._count = total // rows

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int | np.integer) -> np.ndarray:
        if not 0 <= number < self._count:
            raise IndexError(number)
        batch = np.empty(self._rows, object)
        for i in range(self._rows):
            block, row = divmod(number * self._rows + i, self._block_rows)
            batch[i] = self._block(block)[row] if block < len(self._bounds) - 1 else _EMPTY
        return batch

    def _block(self, number: int | np.integer) -> np.ndarray:
        if number not in self._blocks:
            self._keep(number, self._packed(number))
        return self._blocks[number]

    def _keep(self, number: int, rows: list[np.ndarray]) -> None:
        """Brings a block to the common number of rows and keeps it; of the others only its neighbors stay."""
        rows = rows + [_EMPTY] * (self._block_rows - len(rows))
        filled = np.empty(len(rows), object)
        for i, row in enumerate(rows):  # assigned at once, rows of one length would become a matrix
            filled[i] = row
        if self._seed is not None:
            filled = np.random.default_rng((*self._seed, number)).permutation(filled)
        near = {key: value for key, value in self._blocks.items() if abs(key - number) <= 1}
        self._blocks = near | {number: filled[: self._block_rows]}

    def _packed(self, number: int) -> list[np.ndarray]:
        part = self._order[self._bounds[number] : self._bounds[number + 1]]
        return [part[indices] for indices in pack(self._lengths(part), self._row_length)]


_EMPTY = np.zeros(0, np.int32)
