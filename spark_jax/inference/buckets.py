"""The one table of static lengths: frames of wav2vec2, tokens of the codec and prompts are padded to its entries.

Every shape compiles a program, so there are few lengths: 64, 96, 128, 192, 256, 384 … Beyond the first, at most a third
of one is padding.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

SHORTEST = 64
COARSE, FINE = 2, 4  # lengths an octave; of a fine one at most a fifth is padding, where a program costs little


@dataclasses.dataclass(frozen=True)
class Batch:
    """Items that are computed together.

    Attributes:
      length: what each item is padded to.
      rows: rows of the batch; those without an item are padding.
      items: indices of the items, in the first rows.
    """

    length: int
    rows: int
    items: tuple[int, ...]


def bucket(length: int, an_octave: int = COARSE) -> int:
    """Returns the smallest length of the table that holds `length`; the table has so many lengths an octave."""
    return next(size for size in _lengths(an_octave) if size >= length)


def lengths_up_to(most: int) -> tuple[int, ...]:
    """Returns the lengths of the table, in ascending order, up to the one that holds `most`."""
    last = bucket(most)
    return tuple(itertools.takewhile(lambda size: size <= last, _lengths()))


def batches(lengths: Sequence[int], capacity: int, shards: int = 1, full: bool = False) -> list[Batch]:
    """Sorts items into batches of one length each, the shortest first; within a length the order is kept.

    Args:
      lengths: of the items.
      capacity: the most padded frames or tokens of a batch on one shard; a longer item is a batch of its own.
      shards: devices that divide the rows, which are a multiple of it.
      full: gives all batches of a length the same number of rows, so that the program an item runs in depends on its
        own length alone. False: a last, incomplete batch has fewer rows. Either way they are a power of two on a shard.
    """
    members: dict[int, list[int]] = {}
    for item, length in enumerate(lengths):
        members.setdefault(bucket(length), []).append(item)
    planned = []
    for length, items in sorted(members.items()):
        most = 1 << (max(1, capacity // length).bit_length() - 1)  # a power of two, as of incomplete batches
        for first in range(0, len(items), most * shards):
            chosen = items[first : first + most * shards]
            needed = -(-len(chosen) // shards)
            rows = most if full else 1 << (needed - 1).bit_length()
            planned.append(Batch(length, rows * shards, tuple(chosen)))
    return planned


def _lengths(an_octave: int = COARSE) -> Iterator[int]:
    size = SHORTEST
    while True:
        yield from (size + size * step // an_octave for step in range(an_octave))
        size *= 2
