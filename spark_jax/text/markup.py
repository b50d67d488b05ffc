"""Reads pauses that are written into a text, and leaves out what would be read aloud by mistake.

`[pause 0.5s]`, `[pause 500ms]` and SSML's `<break time="500ms"/>` are pauses. Other tags of SSML are no text: they are
dropped and named, so that a caller can warn, and so are those of HTML. Anything else in brackets is text.
"""

import html
import re
from typing import NamedTuple

DEFAULT_PAUSE = 0.5  # seconds, of a pause that does not say how long it is
MAX_PAUSE = 10.0  # seconds, SSML's own limit in the services that people know
_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.4, "strong": 0.7, "x-strong": 1.0}
_TAGS = "speak|p|s|voice|lang|prosody|emphasis|say-as|sub|phoneme|audio|desc|mark|w|token|par|seq|media|break"
# HTML that is pasted with text.
_TAGS += "|a|b|i|u|em|strong|small|sup|br|hr|span|div|font|code|pre|blockquote|ul|ol|li|h[1-6]|img|table|tr|td|th"
_BLOCKS = frozenset("p s br hr div li blockquote pre td th tr h1 h2 h3 h4 h5 h6".split())
_TIME = r"(?P<number>\d+(?:\.\d*)?|\.\d+) ?(?P<unit>ms|milliseconds?|s|sec|seconds?)?"
_PAUSE = re.compile(rf"\[\s*(?:pause|break)\s*[:=]?\s*(?:{_TIME})?\s*\]", re.IGNORECASE)
# A tag has attributes or nothing after its name: "x <s and y> z" is no tag.
_TAG = re.compile(
    rf"</?\s*(?P<name>(?:\w+:)?(?:{_TAGS}))"
    r"""(?P<attributes>(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=/]+))*)\s*/?>|<!--.*?-->|<\?[^<>]*\?>""",
    re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTE = re.compile(r"""([\w:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'<>=/]+))""")


class Marked(NamedTuple):
    """A stretch of text and the pause after it.

    Attributes:
      text: what is said; may be empty where two pauses follow each other.
      pause: seconds of silence after it; 0 where it only ends.
    """

    text: str
    pause: float


def read_markup(text: str) -> tuple[list[Marked], list[str]]:
    """Returns the stretches of a text between its pauses, and the names of tags that were dropped.

    Entities such as `&amp;` are read only in text with tags. A pause is at most `MAX_PAUSE` seconds.

    Args:
      text: as a person wrote it, before `clean_text`.
    """
    dropped: list[str] = []
    marked: list[Marked] = []
    has_tags = _TAG.search(text) is not None
    piece, position = "", 0
    for match in re.finditer(rf"{_PAUSE.pattern}|{_renamed(_TAG.pattern)}", text, re.IGNORECASE | re.DOTALL):
        piece += text[position : match.start()]
        position = match.end()
        name = (match["name"] or "").lower().rpartition(":")[2]
        if match[0].startswith("["):
            pause = _seconds(match["number"], match["unit"] or "s")
        elif name == "break":
            pause = _break_seconds(match["attributes"])
        else:
            piece += "\n\n" if name == "p" else " " if name in _BLOCKS or not name else ""
            if name and name not in dropped:
                dropped.append(name)
            continue
        marked.append(Marked(piece, pause))
        piece = ""
    marked.append(Marked(piece + text[position:], 0.0))
    if has_tags:
        marked = [Marked(html.unescape(text), pause) for text, pause in marked]
    return marked, dropped


def _renamed(pattern: str) -> str:
    return pattern.replace("(?P<number>", "(?:").replace("(?P<unit>", "(?:")


def _break_seconds(attributes: str) -> float:
    values = {name.lower(): "".join(value) for name, *value in _ATTRIBUTE.findall(attributes)}
    time = re.fullmatch(_TIME, values.get("time", "").strip(), re.IGNORECASE)
    if time is not None:
        return _seconds(time["number"], time["unit"] or "s")
    return _STRENGTHS.get(values.get("strength", ""), DEFAULT_PAUSE)


def _seconds(number: str | None, unit: str) -> float:
    if number is None:
        return DEFAULT_PAUSE
    return min(float(number) / (1000 if unit.lower().startswith("m") else 1), MAX_PAUSE)
