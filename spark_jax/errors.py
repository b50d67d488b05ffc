"""The one exception that means "the input is at fault"; the command line turns it into exit code 2."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence


class SparkError(ValueError):
    """Bad input from outside: a file, a configuration, a request.

    The message is one line and names the thing, its value and what was expected.
    """


SHOWN_FAULTS = 5  # of many


class ManyFaultsError(SparkError):
    """Several faults of one thing, such as the tensors of a file; the message has the first few and a count.

    Attributes:
      faults: all of them, a line each.
    """

    def __init__(self, faults: Mapping[str, Sequence[str]]):
        """Args:
        faults: lines by what they are faults of, with which each part of the message begins.
        """
        self.faults = [f"{head}: {line}" for head, lines in faults.items() for line in lines]
        room, parts = SHOWN_FAULTS, []
        for head, lines in faults.items():
            if shown := lines[:room]:
                parts.append(f"{head}: {'; '.join(shown)}")
            room -= len(shown)
        hidden = len(self.faults) - SHOWN_FAULTS
        super().__init__("; ".join(parts) + (f"; and {hidden} more (all with --verbose)" if hidden > 0 else ""))


def one_line(message: object, limit: int | None = None) -> str:
    """Returns the text of an error or any other object with each run of white space as one space.

    Args:
      limit: the most characters that are kept; None keeps all of them.
    """
    return " ".join(str(message).split())[:limit]


@contextlib.contextmanager
def ends_with_a_line() -> Iterator[None]:
    """Ends the program at a SparkError: a line on standard error, and exit code 2."""
    try:
        yield
    except SparkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
