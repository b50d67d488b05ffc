"""Runs an experiment in a folder: speaks, listens, writes `report.json` and `report.html`."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_jax.evaluation import findings, html
from spark_jax.evaluation.cases import Case, Result
from spark_jax.evaluation.experiments.base import Experiment, Plan
from spark_jax.evaluation.judges.registry import JudgeOptions, choose_judges
from spark_jax.evaluation.listening import hear_cases
from spark_jax.evaluation.run_folder import RunFolder
from spark_jax.evaluation.speaking import Models, speak_cases, time_sentences
from spark_jax.shared import files

REPORT, PAGE = "report.json", "report.html"


@dataclasses.dataclass(frozen=True)
class Judging:
    """Which judges hear.

    Attributes:
      asked: "auto" for those that are installed, or names with commas.
      options: how they are made.
    """

    asked: str = "auto"
    options: JudgeOptions = JudgeOptions()


def run_experiment(
    experiment: Experiment, plan: Plan, models: Models, digests: Mapping[str, str], judging: Judging, folder: Path
) -> dict[str, Any]:
    """Runs an experiment, or what is left of it, and returns its report as JSON has it.

    The same settings give the same `report.json`; times are in the page alone.

    Args:
      experiment: what is spoken and summarized.
      plan: of it.
      models: that speak.
      digests: what identifies each model's content, by its label.
      judging: who hears.
      folder: for audio, journals and reports; one that was begun with the same settings is finished.

    Raises:
      SparkError: the folder is another evaluation's, a judge that was asked for is missing, or a model or recording
        cannot be read.
    """
    judges, missing = choose_judges(experiment.judges, judging.asked, judging.options)
    settings = {
        "experiment": experiment.name,
        "models": dict(digests),
        "count": plan.count,
        "seed": plan.seed,
        "seeds": plan.seeds,
        "max_seconds": plan.max_seconds,
        **experiment.settings(),
    }
    run = RunFolder(folder, settings)
    cases = waiting = experiment.cases(folder)
    while waiting:
        speak_cases(waiting, models, run)
        waiting = experiment.follow_up(run.spoken)
        cases = cases + waiting
    if experiment.name == "tts":
        _time(cases, plan.models[0], models, run)
    results = hear_cases(cases, judges, run)
    summary = experiment.summarize(results, [judge.name for judge in judges])
    found = {
        "experiment": experiment.name,
        "models": list(plan.models),
        "settings": settings,
        "judges": {judge.name: judge.version for judge in judges},
        "not_measured": missing,
        "notes": notes(results),
        **findings.as_json(summary),
        "items": [_item(result) for result in results],
    }
    files.write_json(folder / REPORT, found)
    shown = files.read_json(folder / REPORT)
    files.write_text(folder / PAGE, html.page(shown, time_facts(run.times())))
    return shown


def digest(directory: Path) -> str:
    """Returns what identifies the content of a model directory: a hash of its manifest, or of names and sizes."""
    manifest = directory / "manifest.json"
    if manifest.is_file():
        content = files.read_bytes(manifest)
    else:
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        content = "\n".join(f"{path.relative_to(directory)} {path.stat().st_size}" for path in paths).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def notes(results: Sequence[Result]) -> list[str]:
    """Returns what went wrong in speaking, with how often."""
    errors = [result.speech.error for result in results if result.speech.error]
    return [f"{errors.count(message)} × {message}" for message in dict.fromkeys(errors)]


def time_facts(times: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns the measurements of time as name and text."""
    titles = {
        "batch": "batch engine, programs compiled within",
        "single": "one sentence at a time, everything compiled",
        "codec": "encode and decode",
    }
    facts = []
    for how, title in titles.items():
        own = [line for line in times if line["how"] == how]
        audio, wall = (sum(line[name] for line in own) for name in ("audio_seconds", "wall_seconds"))
        if audio > 0:
            facts.append((title, f"real-time factor {wall / audio:.3f}: {audio:.1f} s of speech in {wall:.1f} s"))
    return facts


def _time(cases: Sequence[Case], label: str, models: Models, run: RunFolder) -> None:
    """Times sentences of the first voice, one at a time."""
    spoken = [case for case in cases if run.spoken[case.key].error is None]
    own = [case for case in spoken if case.labels["voice"] == spoken[0].labels["voice"]]
    if own:
        time_sentences(list(dict.fromkeys(case.text for case in own)), dict(own[0].request), label, models, run)


def _item(result: Result) -> dict[str, Any]:
    """Returns a result for the report, without embeddings and the places of files."""
    case = result.case
    request = {name: value for name, value in case.request.items() if name not in ("reference", "voice")}
    found = {
        judge: {name: value for name, value in values.items() if name != "embedding"}
        for judge, values in result.found.items()
    }
    return {
        "key": case.key,
        "how": case.how,
        "model": case.model,
        "text": case.text,
        "request": request,
        "labels": dict(case.labels),
        **dataclasses.asdict(result.speech),
        "found": found,
    }
