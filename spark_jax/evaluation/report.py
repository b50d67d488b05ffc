"""What a measurement of words found, as a table and as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from spark_jax.errors import SparkError
from spark_jax.evaluation.metrics import WordErrors

MEASURES = {
    "recording": "original recordings",
    "codec": "codec resynthesis",
    "tts": "text-to-speech",
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measure of a set of sentences.

    Attributes:
      errors: in the words heard.
      audio_seconds: of speech.
      wall_seconds: that getting the speech took.
      pairs: (text, what was heard) of each sentence.
      cut_off: texts whose synthesis had no end.
    """

    errors: WordErrors
    audio_seconds: float
    wall_seconds: float
    pairs: tuple[tuple[str, str], ...]
    cut_off: list[str]


def check_measures(names: Sequence[str]) -> None:
    """Checks that there are such measures.

    Raises:
      SparkError: one is unknown.
    """
    for name in names:
        if name not in MEASURES:
            raise SparkError(f"measure {name!r} is unknown; expected some of {', '.join(MEASURES)}")


def table(results: Mapping[str, Measured]) -> str:
    """Returns the word errors by measure, a line each."""
    lines = [f"{'speech':<22}{'WER':>8}{'words':>8}{'errors':>8}{'subst.':>8}{'del.':>6}{'ins.':>6}"]
    for name, result in results.items():
        e = result.errors
        lines.append(
            f"{MEASURES[name]:<22}{e.rate:>8.1%}{e.words:>8}{e.errors:>8}"
            f"{e.substitutions:>8}{e.deletions:>6}{e.insertions:>6}"
        )
    return "\n".join(lines)


def to_json(results: Mapping[str, Measured]) -> dict[str, dict[str, Any]]:
    """Returns everything that was found, by measure, as JSON has it."""
    report = {}
    for name, result in results.items():
        report[name] = {
            "wer": result.errors.rate,
            **dataclasses.asdict(result.errors),
            "audio_seconds": result.audio_seconds,
            "wall_seconds": result.wall_seconds,
            "pairs": [{"text": text, "heard": heard} for text, heard in result.pairs],
        }
        if name == "tts":
            report[name]["cut_off"] = result.cut_off
    return report
