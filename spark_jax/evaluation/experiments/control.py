"""Control: what is asked for of a made-up voice, against what is measured in its speech.

Four parts, each of `count` utterances: pitch levels and speed levels one at a time, gender with both at once, and pitch
and speed as numbers. A level is measured as the labels of the training data are: by the mean F0 and the speaker's
gender, and by the syllables per second without silence at both ends.
"""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spark_jax.evaluation import measures, statistics
from spark_jax.evaluation.cases import Case, Result
from spark_jax.evaluation.experiments.base import OneRound, Plan, heard, labeled
from spark_jax.evaluation.findings import Clips, Confusion, Scatter, Summary, Table
from spark_jax.evaluation.statistics import Estimate
from spark_jax.text.attributes import GENDERS, LEVELS, pitch_level, speed_level
from spark_jax.text.language import language_of

UNKNOWN = "none"  # a level that cannot be measured: no voice, or no speech
PITCH_HZ = {"female": (165.0, 190.0, 215.0, 240.0, 270.0), "male": (85.0, 100.0, 120.0, 140.0, 160.0)}
SPEEDS = (3.0, 4.0, 5.0, 6.0)  # syllables a second: the tokens hold whole ones
CLIPS = 6  # of each part


class ControlExperiment(OneRound):
    """Gender, pitch and speed.

    Args:
      plan: an item is an utterance of each of four parts, for each seed.
      texts: to speak, one after the other; then from the second on, and so forth, so that what is asked for comes with
        other texts.
    """

    name = "control"
    judges = ("words", "signal", "pitch", "gender")

    def __init__(self, plan: Plan, texts: Sequence[str]):
        self._plan, self._texts = plan, list(texts)
        self.language = language_of(self._texts[0])

    def settings(self) -> dict[str, Any]:
        """Returns the texts."""
        return {"texts": self._texts[: self._plan.count]}

    def cases(self, folder: Path) -> list[Case]:
        """Returns the four parts."""
        found = []
        for part, asked in self._asked().items():
            for number, request in enumerate(asked):
                again, place = divmod(number, len(self._texts))
                text = self._texts[(place + again) % len(self._texts)]
                name, seeds = f"{part}-{number:04d}", self._plan.requests()
                found += [self._case(name, part, text, {**request, **options}) for options in seeds]
        return found

    def _asked(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the requests of each part; all that can be asked for comes equally often, as far as `count` goes."""
        count, rng = self._plan.count, random.Random(self._plan.seed)
        levels = list(itertools.product(LEVELS, GENDERS))
        both = [(gender, pitch, speed) for gender in GENDERS for pitch in LEVELS for speed in LEVELS]
        rng.shuffle(both)
        numbers = [(gender, hz, speed) for gender in GENDERS for hz in PITCH_HZ[gender] for speed in SPEEDS]
        rng.shuffle(numbers)
        return {
            "pitch": [{"gender": gender, "pitch": level} for level, gender in _repeated(levels, count)],
            "speed": [{"gender": gender, "speed": level} for level, gender in _repeated(levels, count)],
            "joint": [{"gender": g, "pitch": pitch, "speed": speed} for g, pitch, speed in _repeated(both, count)],
            "values": [
                {"gender": gender, "pitch_hz": hz, "syllables_per_second": speed}
                for gender, hz, speed in _repeated(numbers, count)
            ],
        }

    def _case(self, name: str, part: str, text: str, request: dict[str, Any]) -> Case:
        scoring = "characters" if self.language == "zh" else "whisper"
        key, labels = f"{name}-s{request['seed']}", {"part": part}
        return Case(key, "speak", self._plan.models[0], text, self.language, scoring, request, labels=labels)

    def summarize(self, results: Sequence[Result], judges: Sequence[str]) -> Summary:
        """Returns accuracies alone and together, confusions of levels, asked against measured values, and players."""
        parts = {part: labeled(results, part=part) for part in ("pitch", "speed", "joint", "values")}
        right = {
            "gender": (measures.share(_right_gender), "percent"),
            "pitch level": (measures.share(lambda result: _right_level(result, "pitch")), "percent"),
            "speed level": (measures.share(lambda result: _right_level(result, "speed")), "percent"),
            "all that was asked": (measures.share(_all_right), "percent"),
            "failed checks": (measures.share(lambda result: result.speech.failed), "percent"),
        }
        table, figures = measures.tabulate(
            "Right answers",
            "asked for",
            {_TITLES[part]: own for part, own in parts.items()},
            measures.measured((measures.WER, measures.VOICED), judges),
            right,
            "Whispered speech has no pitch and no gender: it counts as wrong.",
        )
        order, more = self._order(parts)
        cost, costs = _cost(parts)
        more |= costs
        sections: list[Any] = [table, order, cost]
        for part, title in (("pitch", "Pitch levels"), ("speed", "Speed levels")):
            sections.append(_confusion(parts[part], part, title))
        sections += [_confusion(parts["joint"], part, f"{part.capitalize()} levels, all at once") for part in _MEASURED]
        for part, (_, _, unit) in _MEASURED.items():
            points = [
                (result.case.request[_ASKED[part]], found, result.case.request["gender"], result.case.key)
                for result in parts["values"]
                if (found := _measured_value(result, part)) is not None
            ]
            sections.append(
                Scatter(f"{part.capitalize()} as a number", f"asked, {unit}", f"measured, {unit}", tuple(points))
            )
        rows = [
            (f"{_wanted(result)}: {heard(result)}", {"speech": result.case.key})
            for own in parts.values()
            for result in own[:CLIPS]
            if not result.speech.error
        ]
        sections.append(Clips("To hear", tuple(rows)))
        return Summary(figures | more, sections)

    def _order(self, parts: dict[str, list[Result]]) -> tuple[Table, dict[str, Estimate]]:
        """Returns rank correlations of levels with what is measured, and errors of numbers."""
        figures = {}
        for part in ("pitch", "speed"):
            for gender in GENDERS:
                own = [result for result in parts[part] if result.case.request["gender"] == gender]
                figures[f"{part} levels, {gender}.spearman"] = _of_pairs(own, part, statistics.spearman)
            figures[f"{part} values.spearman"] = _of_pairs(parts["values"], part, statistics.spearman)
            figures[f"{part} values.relative_error"] = _of_pairs(parts["values"], part, _relative_error)
        names = dict.fromkeys(key.rpartition(".")[0] for key in figures)
        rows = [(name, figures[f"{name}.spearman"], figures.get(f"{name}.relative_error")) for name in names]
        columns = ("asked against measured", "Spearman", "median relative error")
        return Table("Order and distance", columns, tuple(rows), (2, "percent")), figures


_TITLES = {
    "pitch": "gender and pitch level",
    "speed": "gender and speed level",
    "joint": "all at once",
    "values": "pitch and speed as numbers",
}
_MEASURED = {
    "pitch": ("pitch", "f0", "Hz"),
    "speed": ("signal", "syllables_per_second", "syllables/s"),
}
_ASKED = {"pitch": "pitch_hz", "speed": "syllables_per_second"}


def _cost(parts: dict[str, list[Result]]) -> tuple[Table, dict[str, Estimate]]:
    """Returns how many fewer answers are right where everything is asked for at once."""
    answers = {
        "gender": (_right_gender, [*parts["pitch"], *parts["speed"]]),
        "pitch level": (lambda result: _right_level(result, "pitch"), parts["pitch"]),
        "speed level": (lambda result: _right_level(result, "speed"), parts["speed"]),
    }
    figures = {}
    for name, (is_right, alone) in answers.items():
        both = [(result, joint) for joint, own in ((0.0, alone), (1.0, parts["joint"])) for result in own]
        rows = [(right, joint, result) for result, joint in both if (right := is_right(result)) is not None]
        columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
        units = measures.units(list(columns[2]))
        figures[f"joint cost.{name}"] = statistics.estimate(_difference, *columns[:2], units=units)
    title = "Cost of asking for everything at once"
    return Table(title, ("", *answers), (("fewer right answers", *figures.values()),), ("percent",) * 3), figures


def _difference(right: Any, joint: Any) -> float:
    alone, together = right[joint == 0], right[joint == 1]
    return float(alone.mean() - together.mean()) if len(alone) and len(together) else float("nan")


def _repeated(items: Sequence[Any], count: int) -> list[Any]:
    return list(itertools.islice(itertools.cycle(items), count))


def _measured_value(result: Result, part: str) -> float | None:
    judge, name, _ = _MEASURED[part]
    return result.value(judge, name)


def _measured_level(result: Result, part: str) -> str:
    value = _measured_value(result, part)
    if value is None:
        return UNKNOWN
    if part == "pitch":
        return LEVELS[pitch_level(value, result.case.request["gender"])]
    return LEVELS[speed_level(value, result.case.language)]


def _right_level(result: Result, part: str) -> bool | None:
    judge, _, _ = _MEASURED[part]
    asked = result.case.request.get(part)
    if asked is None or judge not in result.found:
        return None
    return _measured_level(result, part) == asked


def _right_gender(result: Result) -> bool | None:
    return None if "gender" not in result.found else result.value("gender", "gender") == result.case.request["gender"]


def _all_right(result: Result) -> bool | None:
    answers = [_right_gender(result), _right_level(result, "pitch"), _right_level(result, "speed")]
    known = [answer for answer in answers if answer is not None]
    return all(known) if known else None


def _confusion(results: Sequence[Result], part: str, title: str) -> Confusion:
    own = [result for result in results if _MEASURED[part][0] in result.found]
    asked, found = [result.case.request[part] for result in own], [_measured_level(result, part) for result in own]
    columns = (*LEVELS, UNKNOWN)
    counts = statistics.confusion(asked, found, LEVELS, columns)
    return Confusion(title, LEVELS, columns, tuple(map(tuple, counts)))


def _of_pairs(results: Sequence[Result], part: str, statistic: statistics.Statistic) -> Estimate:
    """Returns a statistic of what was asked for, a number or the number of a level, and what was measured."""
    known = [result for result in results if _measured_value(result, part) is not None]
    asked = [
        request[_ASKED[part]] if _ASKED[part] in request else LEVELS.index(request[part])
        for request in (result.case.request for result in known)
    ]
    found = [_measured_value(result, part) for result in known]
    return statistics.estimate(statistic, asked, found, units=measures.units(known), seeds=measures.seeds(known))


def _relative_error(asked: Any, found: Any) -> float:
    return statistics.median(abs(found / asked - 1.0))


def _wanted(result: Result) -> str:
    request = result.case.request
    names = ("gender", "pitch", "speed", "pitch_hz", "syllables_per_second")
    return ", ".join(f"{name.replace('_', ' ')} {request[name]}" for name in names if name in request)
