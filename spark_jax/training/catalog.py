"""All trainings by name: what `spark-jax train`, `spark-jax plan` and benchmarks choose from."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.shared.config_files import find_config, load_config, read_yaml
from spark_jax.training.codec import program as codec
from spark_jax.training.codec import run as codec_run
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.ctc import program as ctc
from spark_jax.training.ctc import run as ctc_run
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.llm import program as llm
from spark_jax.training.llm import run as llm_run
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.program import Program
from spark_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Training:
    """One kind of training.

    Attributes:
      config: the class of its configurations.
      program: (configuration, sizes, devices or None) → what it compiles.
      train: (configuration, folder) → the last state; runs it.
      step_flops: (configuration, sizes) → useful operations of a step whose batch is full.
    """

    config: type
    program: Callable[[Any, SparkConfig, Sequence[jax.Device] | None], Program]
    train: Callable[[Any, Path], TrainState]
    step_flops: Callable[[Any, SparkConfig], float]


TRAININGS = {
    "llm": Training(LLMTrainingConfig, llm.llm_program, llm_run.train, llm.llm_full_step_flops),
    "codec": Training(BiCodecTrainingConfig, codec.codec_program, codec_run.train, codec.codec_step_flops),
    "ctc": Training(CTCTrainingConfig, ctc.ctc_program, ctc_run.train, ctc.ctc_step_flops),
}


def training_of(config: Any) -> Training:
    """Returns the training that a configuration is of."""
    return next(training for training in TRAININGS.values() if training.config is type(config))


def load_training(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Returns the configuration of whichever training has the file's keys.

    Args:
      name_or_path: of a recipe or a YAML file.
      overrides: `a.b=value`.

    Raises:
      SparkError: the file cannot be read, or fits none.
    """
    try:
        found = read_yaml(find_config(name_or_path))
    except SparkError:
        found = None
    keys = set(found) if isinstance(found, dict) else set()
    known = {
        training.config: len(keys & {field.name for field in dataclasses.fields(training.config)})
        for training in TRAININGS.values()
    }
    return load_config(max(known, key=known.get), name_or_path, overrides)  # which tells what is wrong with the file
