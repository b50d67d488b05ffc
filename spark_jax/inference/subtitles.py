"""Subtitles of speech: when each piece of a text is heard, as SubRip, WebVTT or JSON.

A piece that is longer than a subtitle should be is divided at its spaces. Where its words are known (see
`word_times`), a part begins with its first word; else each is as long as its share of the characters, so that the times
within a piece are estimates. No model and no JAX.
"""

import bisect
import dataclasses
import itertools
import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spark_jax.errors import SparkError
from spark_jax.inference.long_text import Span, SpokenWord
from spark_jax.shared import files
from spark_jax.text.split import Piece, split_text, spoken_length
from spark_jax.text.words import split_words

EXTENSIONS = (".srt", ".vtt", ".json")
LINE = 42  # characters that a line of subtitles holds, by common practice; two lines at a time
_LENGTH = 2 * LINE


@dataclasses.dataclass(frozen=True)
class Cue:
    """One subtitle.

    Attributes:
      start, end: seconds.
      text: what is said.
    """

    start: float
    end: float
    text: str


def check_subtitles(path: str | os.PathLike[str]) -> None:
    """Checks that the extension of a path names a format of subtitles.

    Raises:
      SparkError: it does not.
    """
    if Path(path).suffix.lower() not in EXTENSIONS:
        raise SparkError(f"{path}: expected the name of a file that ends with {', '.join(EXTENSIONS)}")


def cues(spans: Sequence[Span], sample_rate: int, length: int = _LENGTH) -> list[Cue]:
    """Returns the subtitles of spans of speech.

    Args:
      spans: where each piece is heard.
      sample_rate: Hz.
      length: the longest text of one, in the units of `split.spoken_length`.
    """
    found = []
    for span in spans:
        parts = split_text(span.text, length)
        edges = [edge / sample_rate for edge in (_by_words if span.words else _by_length)(span, parts)]
        found += [Cue(*times, part.text) for part, times in zip(parts, itertools.pairwise(edges), strict=True)]
    return found


def write_subtitles(path: str | os.PathLike[str], spans: Sequence[Span], sample_rate: int) -> None:
    """Writes subtitles in the format of the extension; JSON has the pieces as they are, with their tries and words.

    Raises:
      SparkError: there is no such format, or the file cannot be written.
    """
    check_subtitles(path)
    extension = Path(path).suffix.lower()
    if extension == ".json":
        content = [
            _heard(span, sample_rate)
            | {"tries": span.tries}
            | ({"words": [_heard(word, sample_rate) for word in span.words]} if span.words else {})
            for span in spans
        ]
        files.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    mark = "," if extension == ".srt" else "."
    blocks = [
        f"{number}\n{_time(cue.start, mark)} --> {_time(cue.end, mark)}\n{_lines(cue.text, extension)}\n"
        for number, cue in enumerate(cues(spans, sample_rate), start=1)
    ]
    files.write_text(path, "\n".join(["WEBVTT\n", *blocks] if extension == ".vtt" else blocks))


def _by_length(span: Span, parts: Sequence[Piece]) -> list[float]:
    """Returns where parts of a span begin, and where the last one ends, in samples: by their shares of the text."""
    shares = [0, *itertools.accumulate(spoken_length(part.text) for part in parts)]
    return [span.start + (span.end - span.start) * share / shares[-1] for share in shares]


def _by_words(span: Span, parts: Sequence[Piece]) -> list[float]:
    """As `_by_length`, by when their first words are heard."""
    places = [word.start for word in split_words(span.text)]
    firsts = [bisect.bisect_left(places, part.start) for part in parts[1:]]
    # A part may begin within the last word, where that is longer than a subtitle.
    starts = [span.words[first].start if first < len(places) else span.end for first in firsts]
    return [span.start, *starts, span.end]


def _heard(item: Span | SpokenWord, sample_rate: int) -> dict[str, Any]:
    return {"text": item.text, "start": item.start / sample_rate, "end": item.end / sample_rate}


def _time(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _lines(text: str, extension: str) -> str:
    if extension == ".vtt":  # in which these begin marks
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "\n".join(textwrap.wrap(text, LINE, break_long_words=False, break_on_hyphens=False) or [text])
