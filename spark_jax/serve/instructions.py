"""Attributes of a voice in plain words, as in "A woman with a deep voice who speaks slowly"."""

import dataclasses
import re

_LEVEL = r"(very[ _-]low|very[ _-]high|low|moderate|high)"
_NAMED = {
    "gender": re.compile(r"\bgender\s*[:=]?\s*(female|male)\b"),
    "pitch": re.compile(rf"\bpitch\s*[:=]?\s*{_LEVEL}\b"),
    "speed": re.compile(rf"\bspeed\s*[:=]?\s*{_LEVEL}\b"),
}
_GENDERS = (
    ("female", re.compile(r"\b(female|wom[ae]n|girl|lady)\b")),
    ("male", re.compile(r"\b(male|m[ae]n|boy|gentleman)\b")),
)
_VERY = r"(?P<very>\b(?:very|extremely|really)[ _-]+)?"
_PITCHES = (
    ("low", re.compile(rf"{_VERY}\b(?:deep(?:er|ly)?\b|low(?:er)?[ _-]+(?:pitch(?:ed)?|voice|tone|register)\b)")),
    ("high", re.compile(rf"{_VERY}\bhigh(?:er)?[ _-]+(?:pitch(?:ed)?|voice|tone|register)\b")),
    ("moderate", re.compile(r"\b(?:moderate|normal|medium)[ _-]+(?:pitch(?:ed)?|voice|tone|register)\b")),
)
_SPEEDS = (
    ("low", re.compile(rf"{_VERY}\b(?:slow(?:ly|er)?\b|low[ _-]+speed\b)")),
    ("high", re.compile(rf"{_VERY}\b(?:fast(?:er)?|quick(?:ly|er)?|rapid(?:ly)?|high[ _-]+speed)\b")),
    ("moderate", re.compile(r"\b(?:moderate|normal|medium)[ _-]+(?:speed|pace|tempo)\b")),
)


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What was understood; None: nothing was said of it.

    Attributes:
      gender: "female" or "male".
      pitch, speed: "very_low" to "very_high".
    """

    gender: str | None = None
    pitch: str | None = None
    speed: str | None = None


def read_instructions(text: str) -> Attributes:
    """Returns the attributes that a text names; what else it says is passed over."""
    text = text.lower()
    found = {}
    for name, pattern in _NAMED.items():
        if match := pattern.search(text):
            found[name] = re.sub("[ -]", "_", match[1])
    if "gender" not in found:
        named = [gender for gender, pattern in _GENDERS if pattern.search(text)]
        found["gender"] = named[0] if len(named) == 1 else None
    for name, levels in (("pitch", _PITCHES), ("speed", _SPEEDS)):
        if name not in found:
            found[name] = _level(text, levels)
    return Attributes(**found)


def _level(text: str, levels: tuple[tuple[str, re.Pattern[str]], ...]) -> str | None:
    """Returns the level that is named first."""
    matches = [(match.start(), level, match) for level, pattern in levels if (match := pattern.search(text))]
    if not matches:
        return None
    _, level, match = min(matches, key=lambda item: item[:2])
    very = level != "moderate" and match.groupdict().get("very")
    return f"very_{level}" if very else level
