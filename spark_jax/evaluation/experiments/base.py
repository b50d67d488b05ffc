"""What an experiment is: cases to speak, judges to hear them, and a summary of what they found."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from spark_jax.evaluation.cases import Case, Result, Speech
from spark_jax.evaluation.findings import Summary

CAPTION = 160  # characters of a text, and of what was heard


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all experiments are told.

    Attributes:
      models: labels of the models.
      count: of the items; each experiment says what an item is.
      seed: of draws, and of the first synthesis.
      seeds: how many seeds speak each text, from `seed` on.
      max_seconds: of a synthesis; None: as the model allows.
    """

    models: tuple[str, ...]
    count: int = 20
    seed: int = 0
    seeds: int = 1
    max_seconds: float | None = None

    def requests(self) -> list[dict[str, Any]]:
        """Returns the options that the requests of each seed have in common."""
        limit = {} if self.max_seconds is None else {"max_seconds": self.max_seconds}
        return [{"seed": self.seed + number, **limit} for number in range(self.seeds)]


@runtime_checkable
class Experiment(Protocol):
    """A protocol of evaluation.

    Attributes:
      name: of its command.
      judges: names of those that it uses.
      language: of its texts.
    """

    name: str
    judges: tuple[str, ...]
    language: str

    def settings(self) -> dict[str, Any]:
        """Returns what its results depend on beyond the plan."""

    def cases(self, folder: Path) -> list[Case]:
        """Returns what is spoken first; files that it makes go into the folder."""

    def follow_up(self, spoken: Mapping[str, Speech]) -> list[Case]:
        """Returns what is spoken next, by how the cases before came out; nothing at the end."""

    def summarize(self, results: Sequence[Result], judges: Sequence[str]) -> Summary:
        """Returns what was found.

        Args:
          results: of all cases.
          judges: names of those that have heard.
        """


class OneRound:
    """Experiments without a second round of speech."""

    def follow_up(self, spoken: Mapping[str, Speech]) -> list[Case]:
        """Returns nothing."""
        return []


def labeled(results: Sequence[Result], **labels: Any) -> list[Result]:
    """Returns the results whose cases have these labels."""
    return [
        result for result in results if all(result.case.labels.get(name) == value for name, value in labels.items())
    ]


def heard(result: Result) -> str:
    """Returns the text of a case with what was heard, as a caption."""
    words = result.value("words", "heard")
    caption = _shortened(result.case.text or result.case.key)
    if result.speech.error:
        return f"{caption}: {result.speech.error}"
    return caption if words is None else f"{caption} → {_shortened(words)}"


def _shortened(text: str) -> str:
    return text if len(text) <= CAPTION else f"{text[:CAPTION]}…"
