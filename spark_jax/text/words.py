"""Where the words of a text stand. Pure text, no model and no JAX."""

import re
from typing import NamedTuple

from spark_jax.text.split import IDEOGRAPH

_TOKEN = re.compile(rf"{IDEOGRAPH.pattern}[^\w\s]*|(?:(?!{IDEOGRAPH.pattern})\S)+")


class Word(NamedTuple):
    """A word with the signs around it; an ideograph is one.

    Attributes:
      start, end: where it stands in the text, in characters.
      text: `text[start:end]`.
    """

    start: int
    end: int
    text: str


def split_words(text: str) -> list[Word]:
    """Returns the words of a text in their order; signs that stand alone belong to the word before them."""
    found: list[tuple[int, int]] = []
    first = None  # of the signs before the first word
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if any(character.isalnum() for character in match.group()):
            found.append((start if first is None else first, end))
            first = None
        elif found:
            found[-1] = found[-1][0], end
        elif first is None:
            first = start
    return [Word(start, end, text[start:end]) for start, end in found]
