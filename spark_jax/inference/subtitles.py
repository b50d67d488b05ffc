"""Subtitles of speech: when each piece of a text is heard, as SubRip, WebVTT or JSON.

A piece that is longer than a subtitle should be is divided at its spaces, each part as long as its share of the
characters; so the times within a piece are estimates. No model and no JAX.
"""

import dataclasses
import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from spark_jax.errors import SparkError
from spark_jax.inference.long_text import Span
from spark_jax.shared import files
from spark_jax.text.split import split_text, spoken_length

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
        parts = [part.text for part in split_text(span.text, length)]
        whole = sum(map(spoken_length, parts))
        start, position = span.start / sample_rate, 0
        for part in parts:
            begin, position = position, position + spoken_length(part)
            seconds = (span.end - span.start) / sample_rate
            found.append(Cue(start + seconds * begin / whole, start + seconds * position / whole, part))
    return found


def write_subtitles(path: str | os.PathLike[str], spans: Sequence[Span], sample_rate: int) -> None:
    """Writes subtitles in the format of the extension; JSON has the pieces as they are, with their tries.

    Raises:
      SparkError: there is no such format, or the file cannot be written.
    """
    check_subtitles(path)
    extension = Path(path).suffix.lower()
    if extension == ".json":
        content = [
            {"text": span.text, "start": span.start / sample_rate, "end": span.end / sample_rate, "tries": span.tries}
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


def _time(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _lines(text: str, extension: str) -> str:
    if extension == ".vtt":  # in which these begin marks
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "\n".join(textwrap.wrap(text, LINE, break_long_words=False, break_on_hyphens=False) or [text])
