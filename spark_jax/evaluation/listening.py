"""Lets the judges hear the speech of cases; what a judge has heard already it does not hear again."""

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from spark_jax.evaluation.cases import Case, Result
from spark_jax.evaluation.judges.base import Judge, Utterance
from spark_jax.evaluation.run_folder import RunFolder


def hear_cases(cases: Sequence[Case], judges: Sequence[Judge], run: RunFolder) -> list[Result]:
    """Returns the cases with what every judge found in their speech; it is stored as it is found."""
    speaking = [case for case in cases if run.spoken[case.key].error is None and run.spoken[case.key].seconds > 0]
    for judge in judges:
        waiting = [case for case in speaking if run.found(case.key, judge) is None]
        for case in tqdm(waiting, desc=judge.name, unit="case", disable=not waiting):
            run.keep_found(case.key, judge, judge.judge(_utterance(case, run)))
    return [Result(case, run.spoken[case.key], _found(case, judges, run)) for case in cases]


def _utterance(case: Case, run: RunFolder) -> Utterance:
    target = None if case.target is None else run.samples(case.target)
    return Utterance(run.samples(case.key), case.text, case.language, case.scoring, target)


def _found(case: Case, judges: Sequence[Judge], run: RunFolder) -> dict[str, dict[str, Any]]:
    found = {judge.name: run.found(case.key, judge) for judge in judges}
    return {name: values for name, values in found.items() if values is not None}
