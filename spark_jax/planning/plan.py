"""Says whether a training fits on other machines, and searches for the nearest setting that does."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from spark_jax.errors import SparkError
from spark_jax.performance.hardware import GIB, accelerator
from spark_jax.planning.compile import DoesNotFit, Plan, compile_step, failure
from spark_jax.planning.describe import describe
from spark_jax.planning.trainings import Corpus, neighbors
from spark_jax.training.catalog import load_training


@dataclasses.dataclass(frozen=True)
class Question:
    """What is planned.

    Attributes:
      config: name or path of the training's configuration.
      overrides: of its keys, a.b=value.
      memory: of a chip in GiB; None: what the chip has.
      tries: settings to compile in search of one that fits.
      effort: of the TPU compiler, see `compile_step`.
      save_hlo: file for the text of the compiled program.
      corpus: what is read once.
    """

    config: str
    overrides: tuple[str, ...] = ()
    memory: float | None = None
    tries: int = 8
    effort: float = 0.0
    save_hlo: Path | None = None
    corpus: Corpus = Corpus()

    def load(self, changes: Sequence[str] = ()) -> Any:
        """Returns the training's configuration, with further changes."""
        return load_training(self.config, [*self.overrides, *changes])


def plan(question: Question, where: str, devices: Sequence[Any]) -> bool:
    """Prints the plan for the devices; where the training does not fit, the nearest setting that does.

    Args:
      where: the devices in words.

    Returns:
      Whether it fits as it is.

    Raises:
      SparkError: the configuration is none of a training, or the compiler fails for another reason than memory.
    """
    chip = accelerator(devices[0].device_kind)
    limit = question.memory * GIB if question.memory else (chip.memory if chip else float("inf"))

    def tell(plan: Plan, config: Any) -> None:
        for line in describe(plan, config, chip, limit, question.corpus):
            print(f"  {line}", flush=True)

    config = question.load()
    print(f"{question.config}{_settings(question.overrides)} on {where} ({len(devices)} devices)", flush=True)
    try:
        result = compile_step(config, devices, limit, question.effort, question.save_hlo)
    except jax.errors.JaxRuntimeError as error:
        raise SparkError(f"{question.config} on {where}: {failure(error)}") from error
    if isinstance(result, Plan):
        tell(result, config)
        return True
    print(f"  does not fit  {result.message}", flush=True)
    found = _search(question, devices, limit, result)
    if found is None:
        print(f"  no setting found in {question.tries} tries", flush=True)
        return False
    changes, fitting = found
    print(f"  this does    {_settings(changes)}", flush=True)
    tell(fitting, question.load(changes))
    return False


def _search(
    question: Question, devices: Sequence[Any], limit: float, refused: DoesNotFit
) -> tuple[list[str], Plan] | None:
    """The first setting that fits on the way down: of each round the change that saves most is kept."""
    changes: list[str] = []
    tries = 0
    while True:
        best: tuple[float, list[str]] = (refused.needed, [])
        for change in neighbors(question.load(changes)):
            if tries == question.tries:
                return None
            trial = changes + change
            try:
                result = compile_step(question.load(trial), devices, limit, question.effort)
            except SparkError:
                continue  # sizes that do not divide
            except jax.errors.JaxRuntimeError as error:  # what was asked for does not fit all the same
                result = DoesNotFit(failure(error), float("inf"))
            tries += 1
            if isinstance(result, Plan):
                return _last_of_each(trial), result
            print(f"  neither does  {' '.join(trial)}: {result.message}", flush=True)
            best = min(best, (result.needed, change))
        if not best[1]:
            return None
        changes = changes + best[1]
        refused = DoesNotFit(refused.message, best[0])


def _settings(changes: Sequence[str]) -> str:
    return "".join(f" --set {change}" for change in changes)


def _last_of_each(changes: Sequence[str]) -> list[str]:
    return list({change.partition("=")[0]: change for change in changes}.values())
