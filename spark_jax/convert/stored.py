"""Where our parameters lie: in a model directory, or in the output folder of a training.

A training's folder (train/llm.py, train/bicodec.py, train/wav2vec2.py, and what `spark-jax init-llm` makes) holds one
part: `llm` beside `tokenizer`, `codec`, or `wav2vec2`. Its sizes stand in its `model.yaml`; without one (older
runs) in the file that the `model` of its config.json names.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.parameters import PARTS, abstract_part, differences
from spark_jax.model_directory.parts import read_leaves, stored_part
from spark_jax.shared.config_files import load_config

MODEL_YAML = "model.yaml"
_RUN_FOLDERS = {"bicodec": "codec", "wav2vec2": "wav2vec2", "llm": "llm"}


@dataclasses.dataclass(frozen=True)
class StoredPart:
    """One part on disk.

    Attributes:
      part: "bicodec", "wav2vec2" or "llm".
      folder: of its arrays.
      system: sizes, of which those of this part count.
      tokenizer: folder of the tokenizer that belongs to an LLM.
    """

    part: str
    folder: Path
    system: SparkConfig
    tokenizer: Path | None

    @property
    def target(self) -> Any:
        """Shapes by the configuration, collections on top."""
        return abstract_part(self.part, getattr(self.system, self.part))

    def check(self) -> np.dtype:
        """The type of the weight matrices, once all arrays are known to have the configuration's shapes.

        Raises:
          SparkError: the folder is missing or damaged, or arrays do not fit (all are listed).
        """
        stored = stored_part(self.folder)
        if not stored:
            raise SparkError(f"{self.folder}: no such directory; expected the parameters of {self.part}")
        problems = differences(stored if self._has_collections(stored) else {"params": stored}, self.target)
        if problems:
            raise SparkError(f"{self.folder}: {len(problems)} tensors do not fit: {'; '.join(problems)}")
        return np.dtype(max(jax.tree.leaves(stored), key=lambda leaf: np.prod(leaf.shape)).dtype)

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Path and values of each array, collections on top, a few at a time."""
        prefix = "" if self._has_collections(stored_part(self.folder)) else "params/"
        for path, values in read_leaves(self.folder):
            yield prefix + path, values
            del values

    def _has_collections(self, stored: Any) -> bool:
        """Trainings save the parameters of models without statistics as they are."""
        return "params" in stored


def open_model(directory: str | Path) -> dict[str, StoredPart]:
    """The parts that a model directory or a training's output folder holds.

    Raises:
      SparkError: it is neither, or what describes it is missing or malformed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise SparkError(f"{directory}: no such directory; expected a model directory or a training's output")
    found = {part: directory / name for part, name in _RUN_FOLDERS.items() if (directory / name).is_dir()}
    if not found:
        system = model_directory.read_config(directory)
        model_directory.check_sizes(directory)
        found = {part: model_directory.part_path(directory, part) for part in model_directory.stored_parts(directory)}
        if not found:
            raise SparkError(f"{directory}: holds none of the parts {', '.join(PARTS)}")
    else:
        system = _run_system(directory)
    return {
        part: StoredPart(part, folder, system, directory / "tokenizer" if part == "llm" else None)
        for part, folder in found.items()
    }


def _run_system(directory: Path) -> SparkConfig:
    """The sizes that a training ran with."""
    if (directory / MODEL_YAML).is_file():
        return load_config(SparkConfig, directory / MODEL_YAML)
    path = directory / "config.json"
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
    except OSError as error:
        raise SparkError(f"{path}: cannot be read ({error.strerror}); expected a training's output") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SparkError(f"{path}: not the configuration of a training ({error})") from error
    return load_config(SparkConfig, model)
