"""How a request is to sound: its fields and instructions as those of `Request`, and what is left to a time stretch.

A speed is a number of whole syllables a second to the model. Where it has learned that, and a pitch is known, which
goes with it, the nearest number does what it can, and the rest is stretched; elsewhere all of it is.
"""

import dataclasses
import math
from collections.abc import Sequence

from spark_jax.inference.request import MAX_PITCH_HZ
from spark_jax.serve.instructions import read_instructions
from spark_jax.serve.schema import SpeechBody
from spark_jax.text.attributes import LEVELS, MAX_SPEED_VALUE, PITCH_BOUNDARIES_MEL, SPEED_BOUNDARIES, speed_value
from spark_jax.text.language import language_of
from spark_jax.text_config import TextConfig

MADE_UP = ("female", "male")  # voices of these names are made up


@dataclasses.dataclass(frozen=True)
class Style:
    """The attributes of a request; see `Request`.

    Attributes:
      stretch: by how much the speech is made faster afterwards.
    """

    gender: str | None = None
    pitch: str | None = None
    speed: str | None = None
    pitch_hz: float | None = None
    syllables_per_second: float | None = None
    stretch: float = 1.0


def resolve_style(body: SpeechBody, config: TextConfig) -> tuple[Style, list[str]]:
    """Returns the style of a request, and what of its instructions has no effect.

    A field goes before the instructions. Levels are of a voice that is made up, as for `Request`; of the instructions
    they are left out where there is another voice.
    """
    heard, ignored = read_instructions(body.instructions or ""), []
    gender = body.gender
    if gender is None and body.voice in MADE_UP:
        gender = body.voice
    if gender is None and body.voice is None and body.reference is None:
        gender = heard.gender
    elif heard.gender not in (None, gender):
        ignored.append("gender")
    pitch = body.pitch if body.pitch is not None or body.pitch_hz is not None else heard.pitch
    numbers = body.syllables_per_second is not None
    speed = body.speed_level if body.speed_level is not None or numbers else heard.speed
    if gender is None:
        ignored += [
            name
            for name, own, said in (("pitch", body.pitch, heard.pitch), ("speed", body.speed_level, heard.speed))
            if own is None and said is not None
        ]
        pitch, speed = body.pitch, body.speed_level
    style = Style(gender, pitch, speed, body.pitch_hz, body.syllables_per_second)
    messages = [f"instructions: {' and '.join(ignored)}: the voice has its own; it speaks as it is"] if ignored else []
    return _with_factor(style, body, config), messages


def _with_factor(style: Style, body: SpeechBody, config: TextConfig) -> Style:
    if body.speed == 1.0:
        return style
    pitch = style.pitch_hz
    if pitch is None and style.gender in MADE_UP and (style.pitch or "moderate") in LEVELS:
        pitch = typical_pitch(style.gender, style.pitch or "moderate")
    level = style.speed or "moderate"
    if pitch is None or not config.acts_on("speed") or level not in LEVELS:
        return dataclasses.replace(style, stretch=body.speed)
    ordinary = style.syllables_per_second
    if ordinary is None:
        ordinary = typical_speed(level, language_of(body.input))
    if not 0 < ordinary <= MAX_SPEED_VALUE or not 0 < pitch <= MAX_PITCH_HZ:
        return dataclasses.replace(style, stretch=body.speed)  # out of range, which `Request` tells
    value = max(1, speed_value(ordinary * body.speed))
    # A token stands for a whole number and what lies up to the next.
    reached = (value + 0.5) / (max(1, speed_value(ordinary)) + 0.5)
    return Style(style.gender, None, None, pitch, float(value), body.speed / reached)


def typical_pitch(gender: str, level: str) -> float:
    """Returns a pitch in Hz in the middle of a level of a gender."""
    mel = _middle(PITCH_BOUNDARIES_MEL[gender], level)
    return 700.0 * (math.pow(10.0, mel / 2595.0) - 1.0)


def typical_speed(level: str, language: str) -> float:
    """Returns the syllables a second in the middle of a level."""
    return _middle(SPEED_BOUNDARIES[language], level)


def _middle(boundaries: Sequence[float], level: str) -> float:
    """Returns the middle between two boundaries; the outer levels are as wide as those beside them."""
    a, b, c, d = boundaries
    edges = (2 * a - b, a, b, c, d, 2 * d - c)
    number = LEVELS.index(level)
    return (edges[number] + edges[number + 1]) / 2
