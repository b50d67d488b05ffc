"""What a judge is: it hears an utterance and returns numbers and words.

A judge imports its packages when it is made, and says with which versions it judges.
"""

import dataclasses
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

SAMPLE_RATE = 16_000


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """What a judge hears, and what it may compare it with.

    Attributes:
      samples: the speech at 16 kHz.
      text: what was to be said; None where nobody knows.
      language: "en" or "zh".
      scoring: how words are compared, a key of `metrics.NORMALIZERS`.
      target: a recording at 16 kHz of the same words at the same times, such as the one that a codec encoded.
    """

    samples: Float[np.ndarray, " time"]
    text: str | None = None
    language: str = "en"
    scoring: str = "whisper"
    target: Float[np.ndarray, " _"] | None = None


@runtime_checkable
class Judge(Protocol):
    """Anything that judges utterances.

    Attributes:
      name: a key of `registry.JUDGES`.
      version: the packages and the model that judge.
    """

    name: str
    version: str

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns what is found by name: numbers, texts and lists, as JSON has them; None for what cannot be told."""


def versions(*packages: str) -> str:
    """Returns installed packages with their versions, for `Judge.version`."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:  # imported from a folder
            found.append(package)
    return ", ".join(found)


def finite(value: Any, digits: int = 6) -> float | None:
    """Returns a number rounded for a report; None if it is not finite."""
    value = float(value)
    return round(value, digits) if np.isfinite(value) else None
