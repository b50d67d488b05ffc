"""What one synthesis asks for, checked before any model is loaded."""

import dataclasses
import math
import os
from typing import Any

from spark_jax.dataclass_reader import PlainNumbers
from spark_jax.errors import SparkError
from spark_jax.model_directory.voice import Voice
from spark_jax.text.attributes import GENDERS, LEVELS, MAX_SPEED_VALUE
from spark_jax.text.reading import NORMALIZE, check_text

MAX_PITCH_HZ = 1000.0  # 1000 mel, the highest of the pitch tokens
MAX_RETRIES = 100
_LEVELS = f"one of {', '.join(LEVELS)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(PlainNumbers):
    """A text, whose voice speaks it, and how it is sampled.

    The voice is one of: `voice`, `reference`, `gender`; without any of them the model's default voice speaks.

    Attributes:
      text: what is said; "[pause 0.5s]" and SSML's <break time="…"/> are pauses.
      voice: a voice, or the path of a voice file.
      reference: path of a recording of the speaker to clone.
      transcript: what the reference says; its speech then goes into the prompt and is continued.
      gender: "female" or "male": the model makes up a voice.
      pitch, speed: level of a made-up voice, "very_low" to "very_high"; moderate where neither level nor
        value is given.
      pitch_hz, syllables_per_second: mean pitch and speed as numbers, with any voice; both or neither. For a
        made-up voice they take the place of the levels.
      seed: of the sampling; the same request with the same seed gives the same audio.
      temperature, top_k, top_p: sampling, applied in this order; None: the model's own, see `SamplingConfig`.
      greedy: always take the likeliest token; the sampling options then play no part.
      max_seconds: at most this much speech, without the pauses of a long text; None: for each of its pieces what the
        model allows (60 in the release), or its context holds.
      normalize: "on": numbers, abbreviations and the like are written in words before they are spoken; "off": the text
        stays as it is; "auto": as the model's configuration says (`TextConfig.normalize`).
      retries: how often a piece of the text whose speech fails a check is spoken again, with another seed; the best try
        is kept. 0: never.

    Numbers of numpy are taken as Python's.

    Raises:
      SparkError: from the constructor, for options that are out of range or exclude each other.
    """

    text: str
    voice: Voice | str | os.PathLike[str] | None = None
    reference: str | os.PathLike[str] | None = None
    transcript: str | None = None
    gender: str | None = None
    pitch: str | None = None
    speed: str | None = None
    pitch_hz: float | None = None
    syllables_per_second: float | None = None
    seed: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    max_seconds: float | None = None
    normalize: str = "auto"
    retries: int = 2

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise SparkError(f"text is of type {type(self.text).__name__}, expected a string")
        check_text("text", self.text, "something to say")
        if self.normalize not in NORMALIZE:
            raise SparkError(f"normalize is {self.normalize!r}, expected one of {', '.join(NORMALIZE)}")
        self._check_voice()
        self._check_style()
        _check_whole("seed", self.seed, 0, 2**32 - 1)
        _check_whole("retries", self.retries, 0, MAX_RETRIES)
        if self.top_k is not None:
            _check_whole("top_k", self.top_k, 1, None)
        if self.temperature is not None:
            _check_number("temperature", self.temperature, above=0.0)
        if self.top_p is not None:
            _check_number("top_p", self.top_p, above=0.0, most=1.0)
        if self.max_seconds is not None:
            _check_number("max_seconds", self.max_seconds, above=0.0)

    def _check_voice(self):
        given = [name for name in ("voice", "reference", "gender") if getattr(self, name) is not None]
        if len(given) > 1:
            raise SparkError(f"{' and '.join(given)} exclude each other: give one of them")
        if self.transcript is not None:
            if self.reference is None:
                raise SparkError("transcript needs a reference: it says what the reference recording says")
            check_text("transcript", self.transcript, "what the reference says")

    def _check_style(self):
        if self.gender is not None and self.gender not in GENDERS:
            raise SparkError(f"gender {self.gender!r} is unknown, expected {' or '.join(GENDERS)}")
        for name, value_name, most in (
            ("pitch", "pitch_hz", MAX_PITCH_HZ),
            ("speed", "syllables_per_second", MAX_SPEED_VALUE),
        ):
            level, value = getattr(self, name), getattr(self, value_name)
            if level is not None:
                if level not in LEVELS:
                    raise SparkError(f"{name} level {level!r} is unknown, expected {_LEVELS}")
                if self.gender is None:
                    raise SparkError(f"{name} needs a gender: levels are of a voice that the model makes up")
                if value is not None:
                    raise SparkError(f"{name} and {value_name} exclude each other: give one of them")
            if value is not None:
                _check_number(value_name, value, above=0.0, most=most)
        if (self.pitch_hz is None) != (self.syllables_per_second is None):
            raise SparkError("pitch_hz and syllables_per_second go together: give both of them or neither")


def _check_number(name: str, value: Any, above: float, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise SparkError(f"{name} is {value!r}, expected a number above {above:g}{limit}")
    if math.isinf(value):
        raise SparkError(f"{name} is {value!r}, expected a finite number")


def _check_whole(name: str, value: Any, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limit = "" if most is None else f" to {most}"
        raise SparkError(f"{name} is {value!r}, expected a whole number from {least}{limit}")
