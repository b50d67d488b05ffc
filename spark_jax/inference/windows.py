"""Windows of a recording that is too long for one pass: its cost grows with the length, not the square.

What is longer than the longest speech of a model is encoded in windows of that length. They overlap, and each token
is taken from the window in whose inside it lies.
"""

import dataclasses
import itertools

CONTEXT = 256  # tokens on both sides of those that are taken: 5 s at the release's rate


@dataclasses.dataclass(frozen=True)
class Window:
    """One pass.

    Attributes:
      start: its first token.
      length: how many tokens it has.
      first, stop: the tokens that are taken from it, counted from its start.
    """

    start: int
    length: int
    first: int
    stop: int


def windows(tokens: int, longest: int) -> list[Window]:
    """Returns the windows of so many tokens, in their order; what they are to give adds up to all tokens.

    Args:
      tokens: at least 0.
      longest: what one pass may hold. All windows have this length, if there is more than one.
    """
    if tokens <= longest:
        return [Window(0, tokens, 0, tokens)]
    step = longest - 2 * min(CONTEXT, longest // 4)
    starts = [*range(0, tokens - longest, step), tokens - longest]
    cuts = [0, *((one + other + longest) // 2 for one, other in itertools.pairwise(starts)), tokens]
    return [
        Window(start, longest, first - start, stop - start)
        for start, (first, stop) in zip(starts, itertools.pairwise(cuts), strict=True)
    ]
