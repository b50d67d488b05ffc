"""Attribute labels of VoxBox: levels and value tokens of pitch and speaking speed (paper §4.2).

Pure functions of numbers and names, which the training data and the command line share. Pitch is given in Hz and
compared in mel; speed is the number of syllables per second of speech without the silence at both ends.
"""

import math
from collections.abc import Sequence

from spark_jax.errors import SparkError

LEVELS = ("very_low", "low", "moderate", "high", "very_high")
GENDERS = ("female", "male")

MAX_PITCH_VALUE = 1000
MAX_SPEED_VALUE = 10

# very_low < a <= low < b <= moderate <= c < high <= d < very_high
PITCH_BOUNDARIES_MEL = {
    "male": (144.275, 163.172, 211.044, 249.549),
    "female": (224.325, 257.532, 313.213, 352.569),
}
SPEED_BOUNDARIES = {
    "zh": (2.677, 3.540, 5.166, 6.072),
    "en": (2.553, 3.306, 4.720, 5.464),
}


def _index(kind: str, name: str, allowed: Sequence[str]) -> int:
    if name not in allowed:
        raise SparkError(f"{kind} {name!r} is unknown; expected one of {', '.join(allowed)}")
    return list(allowed).index(name)


def _finite(kind: str, value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise SparkError(f"{kind} {value!r}: expected a finite number that is not negative")
    return float(value)


def _level(value: float, boundaries: tuple[float, float, float, float]) -> int:
    a, b, c, d = boundaries
    if value < a:
        return 0
    if value < b:
        return 1
    if value <= c:
        return 2
    return 3 if value <= d else 4


def hz_to_mel(hz: float) -> float:
    """Converts a frequency in Hz to mel: 2595·log10(1 + hz/700).

    Raises:
      SparkError: the frequency is negative or not finite.
    """
    return 2595.0 * math.log10(1.0 + _finite("pitch in Hz", hz) / 700.0)


def level_id(name: str) -> int:
    """Returns the number of a level, from very_low (0) to very_high (4).

    Raises:
      SparkError: the name is unknown.
    """
    return _index("level", name, LEVELS)


def gender_id(name: str) -> int:
    """Returns the number of a gender: female (0) or male (1).

    Raises:
      SparkError: the name is unknown.
    """
    return _index("gender", name, GENDERS)


def pitch_level(hz: float, gender: str) -> int:
    """Returns the level (0 … 4) of a mean pitch in Hz for a gender.

    Raises:
      SparkError: the gender is unknown, or the pitch is negative or not finite.
    """
    gender_id(gender)
    return _level(hz_to_mel(hz), PITCH_BOUNDARIES_MEL[gender])


def speed_level(syllables_per_second: float, language: str) -> int:
    """Returns the level (0 … 4) of a speed for a language.

    Raises:
      SparkError: the language is unknown, or the speed is negative or not finite.
    """
    _index("language", language, tuple(SPEED_BOUNDARIES))
    return _level(_finite("syllables per second", syllables_per_second), SPEED_BOUNDARIES[language])


def pitch_value(hz: float) -> int:
    """Returns the number m of the token `<|pitch_value_m|>`: whole mel, at most 1000.

    Raises:
      SparkError: the pitch is negative or not finite.
    """
    return int(min(hz_to_mel(hz), MAX_PITCH_VALUE))


def speed_value(syllables_per_second: float) -> int:
    """Returns the number v of the token `<|speed_value_v|>`: whole syllables per second, at most 10.

    Raises:
      SparkError: the speed is negative or not finite.
    """
    return int(min(_finite("syllables per second", syllables_per_second), MAX_SPEED_VALUE))
