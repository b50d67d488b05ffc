"""What is spoken and heard in an evaluation: cases, and what came of them."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from spark_jax.evaluation.metrics import NORMALIZERS

How = Literal["speak", "resynthesize", "recording"]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One utterance of an evaluation.

    Attributes:
      key: names it, and its file; unique in the evaluation.
      how: "speak" by a request, "resynthesize" a recording by the codec, or hear the "recording" itself.
      model: label of the model that does it.
      text: what is said; None where nobody knows.
      language: of the text.
      scoring: how words are compared, see `judges.base.Utterance`.
      request: fields of `inference.request.Request` but the text, for "speak".
      source: path of the recording, for the others.
      target: key of the case that it is compared with, sample by sample.
      labels: what it is an example of.
    """

    key: str
    how: How
    model: str = ""
    text: str | None = None
    language: str = "en"
    scoring: str = "whisper"
    request: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str | None = None
    target: str | None = None
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        assert self.scoring in NORMALIZERS and (self.text if self.how == "speak" else self.source)
        json.dumps([dict(self.request), dict(self.labels)])  # what a report holds


@dataclasses.dataclass(frozen=True)
class Speech:
    """How the speech of a case came out.

    Attributes:
      seconds: of it; 0 where there is none.
      reached_limit: it was cut off.
      checks: names of what `inference.checks` found.
      error: why there is none; None: there is.
    """

    seconds: float
    reached_limit: bool = False
    checks: tuple[str, ...] = ()
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the checks found anything, or there is no speech."""
        return bool(self.error or self.reached_limit or self.checks)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """A case with its speech and with what each judge found."""

    case: Case
    speech: Speech
    found: Mapping[str, Mapping[str, Any]]

    def value(self, judge: str, name: str) -> Any:
        """Returns what a judge found; None where it did not."""
        return self.found.get(judge, {}).get(name)
