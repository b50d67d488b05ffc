"""Cloning: how much a clone sounds like the reference, between another speaker and the codec's own resynthesis.

Of each speaker one recording is the reference, and another one, of other words, shows what can be reached: as it is,
and after the codec (the ceiling). The floor is how much the recordings of the other speakers sound like the reference.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spark_jax.errors import SparkError
from spark_jax.evaluation import measures, statistics
from spark_jax.evaluation.cases import Case, Result
from spark_jax.evaluation.experiments.base import OneRound, Plan, heard, labeled
from spark_jax.evaluation.findings import Clips, Scatter, Summary
from spark_jax.evaluation.judges.registry import SPEAKER_JUDGES
from spark_jax.evaluation.judges.speaker import similarity
from spark_jax.evaluation.recordings import Recording
from spark_jax.evaluation.seed_tts import Line
from spark_jax.evaluation.statistics import Estimate
from spark_jax.text.language import language_of

MODES = {"plain": "without transcript", "continued": "with transcript"}
CLIPS = 16
MEASURES = (measures.WER, measures.MEAN_WER, measures.HNR, measures.SELF_CORRELATION, measures.SPEED)


class CloneExperiment(OneRound):
    """Clones of speakers.

    Args:
      plan: an item is a text in the voice of a speaker, spoken without and with the transcript of the reference.
      lines: what is spoken in the voice of which recording, see `of_recordings` and Seed-TTS-eval's list.
      speakers: gender and kind by the reference's path, where they are known.
    """

    name = "clone"
    judges = ("words", "signal", "pitch", "gender", "resemblyzer", "wavlm")

    def __init__(self, plan: Plan, lines: Sequence[Line], speakers: Mapping[str, Recording] | None = None):
        self._plan, self._lines, self._known = plan, list(lines[: plan.count]), dict(speakers or {})
        languages = {line.language for line in self._lines}
        if len(languages) > 1:
            raise SparkError("the list has texts in Chinese and in English, expected one language")
        self.language = languages.pop()
        self._references = {path: f"{number:04d}" for number, path in enumerate(dict.fromkeys(map(_path, self._lines)))}

    def settings(self) -> dict[str, Any]:
        """Returns the texts and references."""
        return {"lines": [[line.name, line.prompt.name, line.text] for line in self._lines]}

    def cases(self, folder: Path) -> list[Case]:
        """Returns references, other recordings, their resynthesis, and clones."""
        model, found = self._plan.models[0], {}
        for line in self._lines:
            path, number = _path(line), self._references[_path(line)]
            other = str(line.truth or line.prompt)
            common: dict[str, Any] = {"language": line.language, "scoring": line.scoring}
            labels = {"speaker": number}
            for role, how, source, text in (
                ("reference", "recording", path, line.prompt_text),
                ("other", "recording", other, None),
                ("ceiling", "resynthesize", other, None),
            ):
                key = f"{role}-{number}"
                case = Case(key, how, model, text, source=source, labels={"role": role, **labels}, **common)
                found.setdefault(key, case)
            for mode in MODES:
                transcript = {"transcript": line.prompt_text} if mode == "continued" else {}
                for options in self._plan.requests():
                    key = f"{mode}-{line.name}-s{options['seed']}"
                    request = {"reference": path, **transcript, **options}
                    own = {"role": mode, **labels, "kind": self._kind(path)}
                    found[key] = Case(key, "speak", model, line.text, request=request, labels=own, **common)
        return list(found.values())

    def summarize(self, results: Sequence[Result], judges: Sequence[str]) -> Summary:
        """Returns similarities between floor and ceiling, words, pitch following, and players."""
        by_role = {role: _by_speaker(labeled(results, role=role)) for role in ("reference", "other", "ceiling")}
        clones = {name: labeled(results, role=mode) for mode, name in MODES.items()}
        extra: dict[str, Any] = {}
        for judge in SPEAKER_JUDGES:
            if judge in judges:
                pairs = _Similarities(by_role, judge, self._genders())
                extra |= {
                    f"{judge}: similarity": (pairs.own, 3),
                    f"{judge}: floor": (pairs.floor, 3),
                    f"{judge}: ceiling": (pairs.ceiling, 3),
                    f"{judge}: other recording": (pairs.recording, 3),
                    f"{judge}: of the way": (pairs.way, "percent"),
                    f"{judge}: above other gender": (pairs.above, 3),
                }
        if "pitch" in judges:
            extra["F0 distance, semitones"] = (lambda own: _f0_distance(own, by_role["reference"]), 2)
            extra["F0 correlation of speakers"] = (lambda own: _f0_correlation(own, by_role["reference"]), 2)
        extra["failed checks"] = (measures.share(lambda result: result.speech.failed), "percent")
        table, figures = measures.tabulate(
            "Clones",
            "clones",
            clones,
            measures.measured(MEASURES, judges),
            extra,
            "Similarity to the reference. Floor: other speakers' recordings. Ceiling: another recording of the speaker "
            "after the codec. Of the way: from the floor (0 %) to the ceiling (100 %). Above other gender: similarity "
            "to the reference less that to the most similar reference of the other gender.",
        )
        sections: list[Any] = [table]
        kinds = sorted({kind for own in clones.values() for result in own if (kind := result.case.labels["kind"])})
        for name, own in clones.items() if len(kinds) > 1 else ():
            groups = {f"{name}, {kind}": labeled(own, kind=kind) for kind in kinds}
            of_kind, more = measures.tabulate(
                f"Clones {name}, by kind of speaker", "clones", groups, measures.measured(MEASURES, judges), extra
            )
            sections.append(of_kind)
            figures |= more
        if "pitch" in judges:
            points = [
                (wanted, own, name, result.case.key)
                for name, group in clones.items()
                for result in group
                if (own := result.value("pitch", "f0"))
                and (wanted := by_role["reference"][result.case.labels["speaker"]].value("pitch", "f0"))
            ]
            sections.append(
                Scatter("Pitch following", "reference, mean F0 in Hz", "clone, mean F0 in Hz", tuple(points))
            )
        sections.append(self._clips(clones))
        return Summary(figures, sections)

    def _clips(self, clones: Mapping[str, Sequence[Result]]) -> Clips:
        rows: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
        for name, own in clones.items():
            for result in own:
                if result.speech.error is None:
                    speaker, place = result.case.labels["speaker"], (result.case.labels["speaker"], result.case.text)
                    fresh = (heard(result), {"reference": f"reference-{speaker}", "codec": f"ceiling-{speaker}"})
                    rows.setdefault(place, fresh)[1].setdefault(name, result.case.key)
        return Clips("To hear", tuple(list(rows.values())[:CLIPS]))

    def _kind(self, path: str) -> str:
        return self._known[path].kind if path in self._known else ""

    def _genders(self) -> dict[str, str | None]:
        return {
            number: self._known[path].gender if path in self._known else None
            for path, number in self._references.items()
        }


def of_recordings(recordings: Sequence[Recording], texts: Sequence[str], count: int) -> list[Line]:
    """Returns what is spoken in whose voice: every speaker with two recordings in turn, each time with another text.

    Raises:
      SparkError: no speaker has two recordings.
    """
    of_speaker: dict[str, list[Recording]] = {}
    for recording in recordings:
        of_speaker.setdefault(recording.speaker, []).append(recording)
    pairs = [own[:2] for own in of_speaker.values() if len(own) > 1]
    if not pairs:
        raise SparkError("no speaker has two recordings; expected a reference and another one of each")
    language = pairs[0][0].language
    texts = [text for text in texts if language_of(text) == language] or [pair[1].text for pair in pairs]
    found = []
    for number in range(count):
        reference, other = pairs[number % len(pairs)]
        text = texts[number % len(texts)]
        found.append(Line(f"{number:04d}", reference.text, reference.path, text, other.path))
    return found


class _Similarities:
    """Similarities to a clone's reference, by one judge."""

    def __init__(self, by_role: Mapping[str, Mapping[str, Result]], judge: str, genders: Mapping[str, str | None]):
        self._judge, self._genders = judge, genders
        self._embeddings = {
            role: {speaker: result.value(judge, "embedding") for speaker, result in own.items()}
            for role, own in by_role.items()
        }

    def own(self, results: Sequence[Result]) -> Estimate:
        return self._mean(results, self._of_clone)

    def floor(self, results: Sequence[Result]) -> Estimate:
        return self._mean(results, self._of_others)

    def ceiling(self, results: Sequence[Result]) -> Estimate:
        return self._mean(results, lambda result: self._of_role(result, "ceiling"))

    def recording(self, results: Sequence[Result]) -> Estimate:
        return self._mean(results, lambda result: self._of_role(result, "other"))

    def above(self, results: Sequence[Result]) -> Estimate:
        return self._mean(results, self._above_other_gender)

    def way(self, results: Sequence[Result]) -> Estimate:
        rows = [
            (self._of_clone(result), self._of_others(result), self._of_role(result, "ceiling"), result)
            for result in results
        ]
        rows = [row for row in rows if None not in row[:3]]
        columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
        return _estimate(statistics.share_of_way, columns[:3], list(columns[3]))

    def _mean(self, results: Sequence[Result], of: Any) -> Estimate:
        values = [(value, result) for result in results if (value := of(result)) is not None]
        return _estimate(statistics.mean, [[value for value, _ in values]], [result for _, result in values])

    def _of_clone(self, result: Result) -> float | None:
        return _cosine(result.value(self._judge, "embedding"), self._reference(result))

    def _of_role(self, result: Result, role: str) -> float | None:
        return _cosine(self._embeddings[role].get(result.case.labels["speaker"]), self._reference(result))

    def _of_others(self, result: Result) -> float | None:
        own = result.case.labels["speaker"]
        others = [item for speaker, item in self._embeddings["other"].items() if speaker != own]
        values = [value for item in others if (value := _cosine(item, self._reference(result))) is not None]
        return float(np.mean(values)) if values else None

    def _above_other_gender(self, result: Result) -> float | None:
        own = self._genders.get(result.case.labels["speaker"])
        to_self, clone = self._of_clone(result), result.value(self._judge, "embedding")
        if own is None or to_self is None:
            return None
        others = [
            value
            for speaker, item in self._embeddings["reference"].items()
            if self._genders.get(speaker) not in (None, own) and (value := _cosine(clone, item)) is not None
        ]
        return to_self - max(others) if others else None

    def _reference(self, result: Result) -> Any:
        return self._embeddings["reference"].get(result.case.labels["speaker"])


def _path(line: Line) -> str:
    return str(line.prompt)


def _by_speaker(results: Sequence[Result]) -> dict[str, Result]:
    return {result.case.labels["speaker"]: result for result in results}


def _cosine(first: Any, second: Any) -> float | None:
    return None if first is None or second is None else similarity(first, second)


def _estimate(statistic: Any, columns: Sequence[Any], results: list[Result]) -> Estimate:
    """Returns a figure whose units are the speakers: texts in one voice are not independent."""
    speakers = [result.case.labels["speaker"] for result in results]
    return statistics.estimate(statistic, *columns, units=speakers, seeds=measures.seeds(results))


def _f0_pairs(results: Sequence[Result], references: Mapping[str, Result]) -> list[tuple[float, float, Result]]:
    return [
        (wanted, own, result)
        for result in results
        if (own := result.value("pitch", "f0"))
        and (wanted := references[result.case.labels["speaker"]].value("pitch", "f0"))
    ]


def _f0_distance(results: Sequence[Result], references: Mapping[str, Result]) -> Estimate:
    pairs = _f0_pairs(results, references)
    distances = [abs(12 * float(np.log2(own / wanted))) for wanted, own, _ in pairs]
    return _estimate(statistics.median, [distances], [result for _, _, result in pairs])


def _f0_correlation(results: Sequence[Result], references: Mapping[str, Result]) -> Estimate:
    pairs = _f0_pairs(results, references)
    columns = [[wanted for wanted, _, _ in pairs], [own for _, own, _ in pairs]]
    return _estimate(statistics.correlation, columns, [result for _, _, result in pairs])
