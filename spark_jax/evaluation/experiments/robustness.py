"""Robustness: hard texts, and references with noise and reverberation; failures before and after retries.

An answer fails if the checks of `inference.checks` find anything in it, if there is none, or if more than half of the
words are wrong. Only the checks ask for a retry, with another seed: they need no judge, so a server can do the same.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spark_jax.audio.load import load_audio
from spark_jax.audio.write import write_audio
from spark_jax.evaluation import degrade, measures, statistics
from spark_jax.evaluation.cases import Case, Result, Speech
from spark_jax.evaluation.experiments.base import Plan, heard, labeled
from spark_jax.evaluation.findings import Clips, Summary, Table
from spark_jax.evaluation.judges.base import SAMPLE_RATE
from spark_jax.evaluation.judges.speaker import similarity
from spark_jax.evaluation.recordings import Recording, draw
from spark_jax.inference.checks import NAMES
from spark_jax.text.language import language_of

HARD_TEXTS = Path(__file__).parents[1] / "hard_texts.json"
DEGRADATIONS = ("clean", "noise 20 dB", "noise 10 dB", "noise 5 dB", "room 0.3 s", "room 0.8 s")
WRONG_WORDS = 0.5  # of the words: more is a failure
CLIPS = 24
_RETRY_SEED = 1_000_003  # from one try to the next


class RobustnessExperiment:
    """Hard texts and bad references.

    Args:
      plan: an item is a hard text; as many texts again are spoken by bad references.
      texts: lists of them by category.
      request: what chooses the voice of the hard texts.
      recordings: of speakers, to make bad references of; none: only texts.
      plain_texts: what the bad references speak.
      retries: how often a failed one is spoken again.
    """

    name = "robustness"
    judges = ("words", "signal", "resemblyzer", "wavlm")

    def __init__(
        self,
        plan: Plan,
        texts: Mapping[str, Sequence[str]],
        request: Mapping[str, Any],
        recordings: Sequence[Recording],
        plain_texts: Sequence[str],
        retries: int = 2,
    ):
        self._plan, self._request, self._retries, self._plain = plan, dict(request), retries, list(plain_texts)
        turns = itertools.zip_longest(*([(name, text) for text in own] for name, own in texts.items()))
        self._texts = [item for turn in turns for item in turn if item is not None][: plan.count]
        self._references = draw(list(recordings), -(-plan.count // len(DEGRADATIONS)), plan.seed)
        self.language = language_of(self._plain[0])
        self._cases: dict[str, Case] = {}

    def settings(self) -> dict[str, Any]:
        """Returns texts, references and retries."""
        references = [recording.path.name for recording in self._references]
        return {"texts": [text for _, text in self._texts], "references": references, "retries": self._retries}

    def cases(self, folder: Path) -> list[Case]:
        """Returns the first try of everything; the bad references are made in the folder."""
        found = []
        for number, (category, text) in enumerate(self._texts):
            labels = {"part": "texts", "category": category, "try": 0}
            for options in self._plan.requests():
                key = f"text-{number:04d}-s{options['seed']}"
                found.append(self._case(key, text, {**self._request, **options}, labels))
        turns = itertools.product(enumerate(self._references), DEGRADATIONS)
        for number, ((speaker, recording), how) in enumerate(itertools.islice(turns, self._plan.count)):
            path = _degraded(folder, recording, speaker, how, self._plan.seed)
            clean = f"reference-{speaker:04d}"
            labels = {"part": "references", "category": how, "try": 0, "reference": clean}
            if how == DEGRADATIONS[0]:
                found.append(Case(clean, "recording", source=str(path), labels={"part": "clean"}))
            for options in self._plan.requests():
                key = f"voice-{number:04d}-s{options['seed']}"
                text = self._plain[number % len(self._plain)]
                found.append(self._case(key, text, {"reference": str(path), **options}, labels))
        self._cases = {case.key: case for case in found if case.how == "speak"}
        return found

    def _case(self, key: str, text: str, request: Mapping[str, Any], labels: Mapping[str, Any]) -> Case:
        language = language_of(text)
        scoring = "characters" if language == "zh" and self.language == "zh" else "whisper"
        return Case(key, "speak", self._plan.models[0], text, language, scoring, request, labels=labels)

    def follow_up(self, spoken: Mapping[str, Speech]) -> list[Case]:
        """Returns the next try of what failed the checks; a request that cannot be spoken is not asked for again."""
        found = []
        for key, case in list(self._cases.items()):
            number = case.labels["try"]
            again = f"{key.partition('-again')[0]}-again{number + 1}"
            speech = spoken[key]
            if number == self._retries or not speech.failed or speech.error or again in self._cases:
                continue
            request = {**case.request, "seed": (case.request["seed"] + _RETRY_SEED) % 2**32}
            found.append(self._case(again, case.text, request, {**case.labels, "try": number + 1, "first": key}))
        self._cases |= {case.key: case for case in found}
        return found

    def summarize(self, results: Sequence[Result], judges: Sequence[str]) -> Summary:
        """Returns failures of texts and of references by category, what the checks found, and players."""
        tries: dict[str, list[Result]] = {}
        for result in results:
            if "try" in result.case.labels:
                tries.setdefault(result.case.key.partition("-again")[0], []).append(result)
        tries = {key: sorted(own, key=lambda result: result.case.labels["try"]) for key, own in tries.items()}
        first = {key: own[0] for key, own in tries.items()}
        last = {key: own[-1] for key, own in tries.items()}
        references = {result.case.key: result for result in labeled(results, part="clean")}
        sections: list[Any] = []
        figures = {}
        for part, title in (("texts", "Hard texts"), ("references", "Bad references")):
            own = [key for key, result in first.items() if result.case.labels["part"] == part]
            if not own:
                continue
            groups = {
                category: [key for key in own if first[key].case.labels["category"] == category]
                for category in dict.fromkeys(first[key].case.labels["category"] for key in own)
            }
            groups["all"] = own
            columns = {
                name: (lambda keys, of=of, made=made: of([made[key] for key in keys]), form)
                for name, made, of, form in _columns(first, last, judges, references, part)
            }
            rows = []
            for name, keys in groups.items():
                row = {column: make(keys) for column, (make, _) in columns.items()}
                rows.append((name, len(keys), *row.values()))
                figures |= {f"{part}, {name}.{column}": value for column, value in row.items()}
            heads, formats = ("category", "n", *columns), (0, *(form for _, form in columns.values()))
            sections.append(Table(title, heads, tuple(rows), formats, _NOTE))
        sections.append(_faults(first, last))
        rows = [
            (heard(own), {"first try": first[key].case.key, "last try": own.case.key})
            for key, own in last.items()
            if not own.speech.error
        ]
        sections.append(Clips("To hear", tuple(rows[:CLIPS])))
        return Summary(figures, sections)


_NOTE = (
    "Failed checks: without an end, silent, too short or long, a pause, in circles, or no speech at all. "
    "Failed: that, or more than half of the words wrong."
)


def _columns(
    first: Mapping[str, Result],
    last: Mapping[str, Result],
    judges: Sequence[str],
    references: Mapping[str, Result],
    part: str,
) -> list[tuple[str, Mapping[str, Result], Any, str | int]]:
    checks = measures.share(lambda result: result.speech.failed)
    found = [("failed checks", first, checks, "percent"), ("after retries", last, checks, "percent")]
    if "words" in judges:
        failed = measures.share(_failed)
        found += [("failed", first, failed, "percent"), ("failed after retries", last, failed, "percent")]
        found.append(("WER", last, measures.WER.of, "percent"))
    for judge in ("resemblyzer", "wavlm") if part == "references" else ():
        if judge in judges:
            found.append((f"{judge}: similarity", last, _similarity_to(references, judge), 3))
    return found


def _similarity_to(references: Mapping[str, Result], judge: str) -> Any:
    def of(results: Sequence[Result]) -> Any:
        pairs = [
            (result.value(judge, "embedding"), references[result.case.labels["reference"]].value(judge, "embedding"))
            for result in results
        ]
        return statistics.estimate(
            statistics.mean, [similarity(own, clean) for own, clean in pairs if own is not None and clean is not None]
        )

    return of


def _failed(result: Result) -> bool:
    rate = result.value("words", "rate")
    return result.speech.failed or (rate is not None and rate > WRONG_WORDS)


def _faults(first: Mapping[str, Result], last: Mapping[str, Result]) -> Table:
    """Returns how often each fault was found."""

    def count(results: Mapping[str, Result], name: str) -> int:
        return sum(name in result.speech.checks for result in results.values())

    rows = [(name.replace("_", " "), count(first, name), count(last, name)) for name in NAMES]
    errors = [sum(result.speech.error is not None for result in made.values()) for made in (first, last)]
    return Table(
        "What the checks found", ("fault", "first try", "after retries"), (*rows, ("no speech", *errors)), (0, 0)
    )


def _degraded(folder: Path, recording: Recording, speaker: int, how: str, seed: int) -> Path:
    """Returns the file of a reference that was made bad; it is made where it does not exist."""
    path = folder / "references" / f"{speaker:04d}-{how.replace(' ', '_')}.flac"
    if path.exists():
        return path
    samples, rng = load_audio(recording.path, SAMPLE_RATE), np.random.default_rng([seed, speaker])
    kind, _, amount = how.partition(" ")
    number = float(amount.split()[0]) if amount else 0.0
    if kind == "noise":
        samples = degrade.add_noise(samples, number, rng)
    elif kind == "room":
        samples = degrade.add_reverberation(samples, number, SAMPLE_RATE, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, samples.astype(np.float32), SAMPLE_RATE)
    return path
