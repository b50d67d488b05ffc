"""Attribute labels of VoxBox: levels and value tokens of pitch and speaking speed (paper §4.2).

Pure functions of numbers and names, shared by the training data and the command line. Pitch is given in Hz
and compared in mel; speed is syllables per second of speech with the silence at both ends trimmed.
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
    """Frequency in Hz to mel, 2595·log10(1 + hz/700). SparkError unless finite and not negative."""
    return 2595.0 * math.log10(1.0 + _finite("pitch in Hz", hz) / 700.0)


def level_id(name: str) -> int:
    """Number of a level, very_low 0 … very_high 4. SparkError for an unknown name."""
    return _index("level", name, LEVELS)


def gender_id(name: str) -> int:
    """Number of a gender, female 0 and male 1. SparkError for an unknown name."""
    return _index("gender", name, GENDERS)


def pitch_level(hz: float, gender: str) -> int:
    """Level (0 … 4) of a mean pitch in Hz for a gender. SparkError for an unknown gender or a bad pitch."""
    gender_id(gender)
    return _level(hz_to_mel(hz), PITCH_BOUNDARIES_MEL[gender])


def speed_level(syllables_per_second: float, language: str) -> int:
    """Level (0 … 4) of a speed for a language. SparkError for an unknown language or a bad speed."""
    _index("language", language, tuple(SPEED_BOUNDARIES))
    return _level(_finite("syllables per second", syllables_per_second), SPEED_BOUNDARIES[language])


def pitch_value(hz: float) -> int:
    """Number m of the token `<|pitch_value_m|>`: whole mel, at most 1000. SparkError for a bad pitch."""
    return int(min(hz_to_mel(hz), MAX_PITCH_VALUE))


def speed_value(syllables_per_second: float) -> int:
    """Number v of the token `<|speed_value_v|>`: whole syllables a second, at most 10.

    SparkError for a bad speed.
    """
    return int(min(_finite("syllables per second", syllables_per_second), MAX_SPEED_VALUE))
