"""Which request is in which slot: the queue, admissions, windows and finishes of continuous batching, without JAX.

The engine asks for admissions, then for a block, and reports the finishes of a block when its results have arrived: one
block behind, so that the device never waits for the host. The scheduler decides nothing that changes what a request
gets; it decides when.
"""

import collections
import dataclasses
from collections.abc import Sequence

SMALLEST_WINDOW = 128


@dataclasses.dataclass(frozen=True)
class Admission:
    """Prompts that are read together, in the rows of one prefill.

    Attributes:
      length: what each prompt is padded to.
      rows: rows of the prefill; those without a prompt are padding.
      tickets, slots: of each prompt, in the first rows.
    """

    length: int
    rows: int
    tickets: tuple[int, ...]
    slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of decode steps.

    Attributes:
      number: counts the blocks.
      window: places of the cache that it reads.
      tickets: who is in each slot; None: nobody, or one who has left.
    """

    number: int
    window: int
    tickets: tuple[int | None, ...]


@dataclasses.dataclass
class _Occupant:
    ticket: int
    length: int  # tokens in the cache, at most


class Scheduler:
    """The state of a fixed number of slots and of the queue before them."""

    def __init__(
        self,
        slots: int,
        block: int,
        windows: Sequence[int],
        prompt_lengths: Sequence[int],
        prompt_rows: Sequence[int],
    ):
        """Args:
        slots: how many requests decode together.
        block: tokens between two refills.
        windows: lengths of the cache that a block may read, ascending; the last is what a slot has room for.
        prompt_lengths: what prompts are padded to, ascending.
        prompt_rows: rows of the prefill of each of these lengths.
        """
        self._block, self._windows = block, tuple(windows)
        self._rows = dict(zip(prompt_lengths, prompt_rows, strict=True))
        self._slots: list[_Occupant | None] = [None] * slots
        self._queues: dict[int, collections.deque[tuple[int, int]]] = {
            length: collections.deque() for length in prompt_lengths
        }
        self._left: set[int] = set()  # canceled in the queue; they go when their turn comes
        self._waiting: set[int] = set()
        self._blocks = 0

    @property
    def waiting(self) -> int:
        """Returns how many requests are in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Returns how many requests are in slots."""
        return sum(occupant is not None for occupant in self._slots)

    def submit(self, ticket: int, prompt_tokens: int) -> None:
        """Puts a request at the end of the queue; tickets are given in ascending order."""
        length = next(length for length in self._rows if length >= prompt_tokens)
        self._queues[length].append((ticket, prompt_tokens))
        self._waiting.add(ticket)

    def cancel(self, ticket: int) -> bool:
        """Lets a request leave: the queue at once, its slot for the next admission. False: it was gone already."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._left.add(ticket)
            return True
        return self._free(ticket)

    def admissions(self) -> list[Admission]:
        """Moves requests from the queue into free slots.

        The first of the queue is always among those that are admitted next, and the others of its length follow it in
        their order. A prefill costs the same however many of its rows are used; so, while others decode, it waits
        until as many slots are free as it has rows and prompts.
        """
        admitted = []
        while (length := self._next_length()) is not None:
            free = [slot for slot, occupant in enumerate(self._slots) if occupant is None]
            wanted = min(self._rows[length], self._count(length))
            if not free or (len(free) < wanted and len(free) < len(self._slots)):
                break
            chosen = [self._queues[length].popleft() for _ in range(min(wanted, len(free)))]
            slots = tuple(free[: len(chosen)])
            for slot, (ticket, tokens) in zip(slots, chosen, strict=True):
                self._waiting.remove(ticket)
                self._slots[slot] = _Occupant(ticket, tokens)
            tickets = tuple(ticket for ticket, _ in chosen)
            admitted.append(Admission(length, self._rows[length], tickets, slots))
        return admitted

    def begin_block(self) -> Block | None:
        """Returns the next block for those in the slots; None: there is nobody."""
        occupants = [occupant for occupant in self._slots if occupant is not None]
        if not occupants:
            return None
        longest = max(occupant.length for occupant in occupants)
        window = next(size for size in self._windows if size >= longest)
        for occupant in occupants:  # one that has ended is no longer than this
            occupant.length = min(occupant.length + self._block, self._windows[-1])
        self._blocks += 1
        tickets = tuple(None if occupant is None else occupant.ticket for occupant in self._slots)
        return Block(self._blocks, window, tickets)

    def finish(self, ticket: int) -> bool:
        """Frees the slot of a request that has ended. False: it had left already."""
        return self._free(ticket)

    def _free(self, ticket: int) -> bool:
        for slot, occupant in enumerate(self._slots):
            if occupant is not None and occupant.ticket == ticket:
                self._slots[slot] = None
                return True
        return False

    def _next_length(self) -> int | None:
        """Returns the padded length of the request that waits longest."""
        first: dict[int, int] = {}
        for length, queue in self._queues.items():
            while queue and queue[0][0] in self._left:
                self._left.remove(queue.popleft()[0])
            if queue:
                first[queue[0][0]] = length
        return first[min(first)] if first else None

    def _count(self, length: int) -> int:
        """Returns how many requests of a length wait, counted up to the rows of its prefill; those who left go."""
        queue, most = self._queues[length], self._rows[length]
        staying: list[tuple[int, int]] = []
        while queue and len(staying) < most:
            item = queue.popleft()
            if item[0] in self._left:
                self._left.remove(item[0])
            else:
                staying.append(item)
        queue.extendleft(reversed(staying))
        return len(staying)


def windows(capacity: int) -> tuple[int, ...]:
    """Returns the windows of a cache: the powers of two up to its capacity.

    Raises:
      ValueError: the capacity is no power of two of at least the smallest window.
    """
    if capacity < SMALLEST_WINDOW or capacity & (capacity - 1):
        raise ValueError(f"capacity is {capacity}, expected a power of two from {SMALLEST_WINDOW}")
    return tuple(1 << power for power in range(SMALLEST_WINDOW.bit_length() - 1, capacity.bit_length()))
