"""Where the parts of a model lie, and with which sizes: in a model directory, or as older trainings wrote them.

A model directory has `params/<part>` beside `config.json`, the sizes. It may have some of the parts only: a conversion
for training, the start of a pretraining, a run or the folder `best` of a run. Before runs wrote model directories
they had folders `llm`, `codec`, `wav2vec2` and `ctc`, in which parts without statistics have no collections on top;
their `config.json` holds the settings of the training, and the sizes are in `model.yaml` or in the file that `model` in
`config.json` names.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spark_jax import config as config_lib
from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError, one_line
from spark_jax.model_directory import manifest
from spark_jax.model_directory.parameters import (
    PARTS,
    RECOGNIZER,
    RECORDS,
    abstract_part,
    check_fit,
    recognizer_labels,
)
from spark_jax.model_directory.parts import read_arrays, stored_arrays, stream_arrays
from spark_jax.shared.config_files import load_config
from spark_jax.shared.files import read_json, write_json

FORMAT_VERSION = 1
CONFIG = "config.json"
TOKENIZER = "tokenizer"
_OLD_SIZES = "model.yaml"


@dataclasses.dataclass(frozen=True)
class StoredPart:
    """One part on disk.

    Attributes:
      part: its name.
      folder: of its arrays.
      config: the system's sizes, of which those of this part count.
      directory: the model directory or run that it is a part of.
    """

    part: str
    folder: Path
    config: SparkConfig
    directory: Path

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that belongs to an LLM."""
        return self.directory / TOKENIZER

    @property
    def target(self) -> Any:
        """Shapes by the configuration, collections on top."""
        labels = recognizer_labels(self.arrays) if self.part == RECOGNIZER else None
        return abstract_part(self.part, getattr(self.config, RECORDS[self.part].section), labels)

    @functools.cached_property
    def arrays(self) -> Any:
        """Shapes and types as stored, collections on top; a SparkError: the folder is damaged."""
        return {"params": self._stored} if self._plain else self._stored

    @functools.cached_property
    def _stored(self) -> Any:
        return stored_arrays(self.folder)

    @property
    def _plain(self) -> bool:
        """Whether an older training wrote the parameters without a collection on top, for want of statistics."""
        return "params" not in self._stored

    def check(self) -> np.dtype:
        """Returns the type of the weight matrices, once all arrays are known to have the configuration's shapes.

        Raises:
          SparkError: the folder is damaged, or arrays do not fit (all are listed).
        """
        check_fit(self.folder, self.arrays, self.target)
        return largest(self.arrays).dtype

    def read(self, wanted: Any) -> Any:
        """Returns a tree of `jax.ShapeDtypeStruct`, collections on top, filled with the stored values.

        Raises:
          SparkError: the folder is damaged.
        """
        if self._plain:
            return {"params": read_arrays(self.folder, wanted["params"])}
        return read_arrays(self.folder, wanted)

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields path and values of each array, collections on top, a few at a time."""
        prefix = "params/" if self._plain else ""
        for path, values in stream_arrays(self.folder):
            yield prefix + path, values
            del values


def open_parts(directory: str | Path) -> dict[str, StoredPart]:
    """Finds the parts that a model directory or a training's output folder holds.

    Raises:
      SparkError: it is neither, a file is missing or truncated, or what describes it is malformed.
    """
    directory = Path(directory).absolute()
    if not directory.is_dir():
        raise SparkError(f"{directory}: no such directory; expected a model directory or a training's output")
    config = read_config(directory)
    if _is_old(directory):
        folders = {record.name: directory / record.old_folder for record in RECORDS.values()}
    else:
        manifest.check_sizes(directory)
        folders = {part: part_path(directory, part) for part in RECORDS}
    return {part: StoredPart(part, path, config, directory) for part, path in folders.items() if path.is_dir()}


def open_part(source: str | Path, part: str) -> StoredPart:
    """Finds one part.

    Args:
      source: a model directory, a training's output folder, or the folder of the part's arrays itself; its
        configuration is not looked at.
      part: its name.

    Raises:
      SparkError: the part is not there, or a file is missing or truncated.
    """
    source = Path(source).absolute()
    if (source / "params").is_dir():
        manifest.check_sizes(source)
    places = (source / "params" / part, source / RECORDS[part].old_folder, source)
    for folder in places:
        if (folder / "_CHECKPOINT_METADATA").is_file():
            manifest.check_part_sizes(folder)
            return StoredPart(part, folder, SparkConfig(), source)
    raise SparkError(f"{source}: holds no {part}; expected a model directory, a training's output or a part's folder")


def holds_part(source: Path, part: str) -> bool:
    """Returns whether a folder is a model directory or a run that has the part."""
    return part_path(source, part).is_dir() or (_is_old(source) and (source / RECORDS[part].old_folder).is_dir())


def part_path(directory: Path, part: str) -> Path:
    """Returns the folder of a part's arrays in a model directory."""
    return directory / "params" / part


def stored_parts(directory: str | Path) -> list[str]:
    """Returns the names of the parts that a model directory has: of a partial one not all."""
    return [part for part in RECORDS if part_path(Path(directory), part).is_dir()]


def read_config(directory: str | Path) -> SparkConfig:
    """Reads the sizes of a model directory, or those that an older training ran with.

    Raises:
      SparkError: they are missing, not JSON, of another version, or not a configuration.
    """
    directory = Path(directory)
    if _is_old(directory):
        return _read_old_config(directory)
    path = directory / CONFIG
    if not (directory / "params").is_dir() and (directory / "BiCodec").is_dir():
        raise SparkError(
            f"{directory}: in the layout of the release; expected a model directory, which "
            f"`spark-jax convert {directory} DST` makes of it"
        )
    content = read_json(path, "a model directory")
    if isinstance(content, dict) and "model_type" in content and "format_version" not in content:
        raise SparkError(
            f"{directory}: a model of type {content['model_type']!r} in the layout of transformers; expected a model "
            f"directory, which `spark-jax convert RELEASE DST --llm {directory}` makes of a language model"
        )
    version = content.pop("format_version", None) if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise SparkError(f"{path}: format_version is {version!r}, expected {FORMAT_VERSION}")
    return config_lib.from_mapping(SparkConfig, content, str(path))


def read_system(path: str | Path | None) -> SparkConfig:
    """Reads the sizes that the setting `model` of a training names.

    Args:
      path: a YAML file of a SparkConfig or a recipe's name; or a model directory, a run or its `config.json`; None: the
        release's sizes.

    Raises:
      SparkError: it cannot be read or is not a configuration.
    """
    if path is None:
        return SparkConfig()
    path = Path(path)
    if path.is_dir():
        return read_config(path)
    return read_config(path.parent) if path.name == CONFIG else load_config(SparkConfig, path)


def write_config(directory: Path, config: SparkConfig, parts: Iterable[str] = PARTS) -> None:
    """Writes `config.json`.

    Parts that the directory has, and that are not written now, keep their sizes. Sizes of parts that it does not have
    are left out where they are the release's: reading gives them back.

    Args:
      directory: the model directory.
      config: the whole system's.
      parts: names of those that are written with this configuration.

    Raises:
      SparkError: the file cannot be written, or the configuration does not fit the parts that stay.
    """
    path = directory / CONFIG
    content = {"format_version": FORMAT_VERSION} | config_lib.to_mapping(config)
    release, before = config_lib.to_mapping(SparkConfig()), _read_before(path)
    written, kept = ({RECORDS[part].section for part in names} for names in (parts, stored_parts(directory)))
    for section in {record.section for record in RECORDS.values()} - written:
        if section in kept and section in before and "format_version" in before:
            content[section] = before[section]
        elif content[section] == release[section]:
            del content[section]
    config_lib.from_mapping(SparkConfig, {key: content[key] for key in content.keys() - {"format_version"}}, str(path))
    write_json(path, content)


def combined_config(directory: Path, parts: Mapping[str, StoredPart]) -> SparkConfig:
    """Returns the configuration of a system whose parts come from several directories.

    Sizes come from each part's own directory, how voices are heard from the codec's, how text is read and tokens
    are drawn from the LLM's.

    Args:
      directory: for the message.
      parts: at least one, by name.

    Raises:
      SparkError: the directories differ in sample rate or in samples a token.
    """
    first = parts.get("bicodec") or next(iter(parts.values()))
    config = first.config
    for name, stored in parts.items():
        for field in ("sample_rate", "latent_hop_length"):
            ours, theirs = getattr(config, field), getattr(stored.config, field)
            if ours != theirs:
                raise SparkError(
                    f"{directory}: {field} is {theirs} in {stored.directory}, which has the {name}, "
                    f"and {ours} in {first.directory}, which has the {first.part}; expected the same"
                )
        section = RECORDS[name].section
        if not (name == RECOGNIZER and "wav2vec2" in parts):
            config = dataclasses.replace(config, **{section: getattr(stored.config, section)})
    if "llm" in parts:
        own = parts["llm"].config
        config = dataclasses.replace(config, sampling=own.sampling, text=own.text)
    return config


def largest(tree: Any) -> Any:
    """Returns the largest array of a tree, which tells the storage type of its weight matrices."""
    return max(jax.tree.leaves(tree), key=lambda leaf: np.prod(leaf.shape))


def _is_old(directory: Path) -> bool:
    """Whether a training wrote the folder before its parts were a model directory."""
    if (directory / "params").is_dir():
        return False
    if not any((directory / record.old_folder).is_dir() for record in RECORDS.values()):
        return False
    return "format_version" not in _read_before(directory / CONFIG)


def _read_before(path: Path) -> Mapping[str, Any]:
    """What a configuration holds; nothing where it is missing or no mapping."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_old_config(directory: Path) -> SparkConfig:
    if (directory / _OLD_SIZES).is_file():
        return load_config(SparkConfig, directory / _OLD_SIZES)
    path = directory / CONFIG
    content = read_json(path, "a training's output")
    try:
        model = content["model"]
    except (KeyError, TypeError) as error:
        raise SparkError(f"{path}: not the configuration of a training ({one_line(error)})") from error
    return load_config(SparkConfig, model)
