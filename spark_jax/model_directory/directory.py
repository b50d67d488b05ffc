"""A model directory: configuration, tokenizer and parameters of a whole text-to-speech system.

    DIR/config.json          SparkConfig, and "format_version"
    DIR/tokenizer/           tokenizer.json and what comes with it
    DIR/params/<part>/       one Orbax tree each for bicodec, wav2vec2 and llm, collections on top
    DIR/voices/NAME.json     optional voice files; default.json speaks where a request names no voice
    DIR/provenance.json      where the weights come from: sources and their hashes, versions, date
    DIR/MODEL_CARD.md        the same for people, or a card of one's own
    DIR/manifest.json        size and SHA-256 of every other file, for `spark-jax info --check`

Weight matrices may be stored in a shorter type; norms, biases, gains and statistics are float32 always. A
directory is written under a temporary name and renamed when it is complete. Directories of before the manifest
have `params/files.json` in its place, the sizes of the parameter files alone; they load as ever.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spark_jax import config as config_lib
from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError, one_line
from spark_jax.model_directory import manifest
from spark_jax.model_directory import provenance as provenance_lib
from spark_jax.model_directory.parameters import (
    PARTS,
    abstract_part,
    abstract_variables,
    cast_weights,
    differences,
    target_variables,
    with_weight_dtype,
)
from spark_jax.model_directory.parts import load_part, stored_part, write_part
from spark_jax.model_directory.provenance import Provenance
from spark_jax.sharding import unbox
from spark_jax.shared.pytree import flatten

__all__ = [
    "PARTS",
    "LoadedModel",
    "ModelInfo",
    "PartInfo",
    "Provenance",
    "abstract_part",
    "abstract_variables",
    "check_sizes",
    "copy_files",
    "finish",
    "info",
    "load",
    "new_directory",
    "part_path",
    "read_config",
    "save",
    "stored_parts",
    "with_weight_dtype",
    "write_config",
]

FORMAT_VERSION = 1
DEFAULT_VOICE = "default.json"
MODEL_CARD = "MODEL_CARD.md"
OLDER_FILE_LIST = "files.json"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What `load` returns: everything a synthesizer needs."""

    config: SparkConfig
    variables: dict[str, Any]  # part → collection → tree of arrays, of the parts that were asked for
    tokenizer_directory: Path
    voices: dict[str, Path]  # voice files by name, without ".json"
    default_voice: Path | None


@dataclasses.dataclass(frozen=True)
class PartInfo:
    """Size of one part as stored."""

    parameters: int
    bytes: int
    dtype: str  # of the weight matrices


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What `spark-jax info` shows."""

    directory: Path
    parts: dict[str, PartInfo]
    vocabulary: int
    semantic_codes: int
    global_codes: int
    global_tokens: int  # per utterance
    token_rate: float  # semantic tokens a second
    sample_rate: int
    voices: list[str]
    bytes: int  # of all files
    provenance: Provenance | None  # None: a directory of before it was recorded

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())


def save(
    directory: str | Path,
    config: SparkConfig,
    variables: Mapping[str, Any],
    tokenizer_directory: str | Path,
    *,
    weight_dtype: Any = None,
    voices: Mapping[str, str | Path] | None = None,
    model_card: str | Path | None = None,
    provenance: Provenance | None = None,
) -> None:
    """Writes a model directory, with provenance, model card and hashes.

    Args:
      directory: must not exist yet, or be empty.
      config: the whole system's sizes.
      variables: {"bicodec": {"params", "batch_stats", "code_statistics"}, "wav2vec2": {"params"},
        "llm": {"params"}}, plain trees or Linen's boxes.
      tokenizer_directory: its files are copied.
      weight_dtype: storage type of the weight matrices, e.g. jnp.bfloat16; None: as they are.
      voices: voice files to copy, by the names they get (without ".json"); "default" is the default voice.
      model_card: a file to copy as MODEL_CARD.md; None: one is made.
      provenance: where the variables come from; None: versions and date alone.

    Raises:
      SparkError: the directory is taken or cannot be written, or the variables are not the configuration's.
    """
    variables = unbox(dict(variables))
    problems = differences(variables, abstract_variables(config))
    if problems:
        raise SparkError(f"{directory}: not saved, variables do not fit the configuration: {'; '.join(problems)}")
    with new_directory(directory) as folder:
        write_config(folder, config)
        copy_files(tokenizer_directory, folder / "tokenizer")
        for part in PARTS:
            write_part(part_path(folder, part), flatten(cast_weights(variables[part], weight_dtype)).items())
        for name, path in (voices or {}).items():
            (folder / "voices").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "voices" / f"{name}.json")
        finish(folder, provenance, model_card)


def load(
    directory: str | Path, llm_dtype: Any = jnp.float32, *, parts: Sequence[str] = PARTS, mesh: Mesh | None = None
) -> LoadedModel:
    """Reads a model directory onto the default device, or straight into the shards of a mesh.

    Args:
      directory: the model directory.
      llm_dtype: type of the LLM's weight matrices in memory, whatever the files hold; all else is float32.
      parts: those of "bicodec", "wav2vec2" and "llm" that are wanted; the others are not read.
      mesh: divides each array as the table of `spark_jax.sharding` says; each host reads only the chunks that its
        shards lie in. None: everything on the default device.

    Raises:
      SparkError: a file is missing, truncated or malformed, tensors are missing, extra or misshapen, or the mesh
        does not divide them (all are listed at once, before any is read).
    """
    directory = Path(directory).absolute()
    if unknown := [part for part in parts if part not in PARTS]:
        raise SparkError(f"parts: {', '.join(map(repr, unknown))} unknown, expected some of {', '.join(PARTS)}")
    config = read_config(directory)
    if missing := [part for part in parts if part not in stored_parts(directory)]:
        raise SparkError(f"{directory}: holds no {' and no '.join(missing)}; expected a model of {', '.join(parts)}")
    tokenizer = directory / "tokenizer"
    if "llm" in parts and not tokenizer.is_dir():
        raise SparkError(f"{tokenizer}: no such directory; expected the model's tokenizer")
    check_sizes(directory)
    wanted = target_variables(config, parts, llm_dtype, mesh)
    problems = differences({part: stored_part(part_path(directory, part)) for part in parts}, wanted)
    if problems:
        raise SparkError(f"{directory / 'params'}: {len(problems)} tensors do not fit: {'; '.join(problems)}")
    variables = {part: load_part(part_path(directory, part), wanted[part]) for part in parts}
    voices = _voices(directory)
    return LoadedModel(config, variables, tokenizer, voices, voices.get(DEFAULT_VOICE.removesuffix(".json")))


def info(directory: str | Path) -> ModelInfo:
    """Sizes and facts of a model directory, from its metadata alone.

    Raises:
      SparkError: as `load`, for the files that are read.
    """
    directory = Path(directory).absolute()
    config = read_config(directory)
    check_sizes(directory)
    return ModelInfo(
        directory=directory,
        parts={part: _part_info(directory, part) for part in stored_parts(directory)},
        vocabulary=config.llm.vocab_size,
        semantic_codes=config.bicodec.quantizer.codebook_size,
        global_codes=math.prod(config.bicodec.speaker_encoder.fsq_levels),
        global_tokens=config.bicodec.speaker_encoder.token_num,
        token_rate=config.sample_rate / config.latent_hop_length,
        sample_rate=config.sample_rate,
        voices=sorted(_voices(directory)),
        bytes=sum(_sizes(directory).values()),
        provenance=provenance_lib.read_provenance(directory),
    )


@contextlib.contextmanager
def new_directory(directory: str | Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `directory` at the end; after an error nothing is left of it.

    Raises:
      SparkError: `directory` exists and is not empty, or its parent cannot be written.
    """
    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SparkError(f"{directory}: exists already; expected a new name or an empty directory")
    folder = directory.with_name(f".{directory.name}.{os.getpid()}.new")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise SparkError(f"{directory}: cannot be created ({error.strerror})") from error
    try:
        yield folder
        os.replace(folder, directory)  # an empty directory of that name gives way
    except OSError as error:
        raise SparkError(f"{directory}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_config(folder: Path, config: SparkConfig, parts: Sequence[str] = PARTS) -> None:
    """Writes `config.json`, without the sizes of parts that the directory does not have."""
    content = {"format_version": FORMAT_VERSION} | config_lib.to_mapping(config)
    for part in set(PARTS) - set(parts):
        del content[part]
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def read_config(directory: str | Path) -> SparkConfig:
    """Reads `config.json`.

    Raises:
      SparkError: it is missing, no JSON, of another version, or not a configuration.
    """
    path = Path(directory) / "config.json"
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise SparkError(f"{path}: cannot be read ({error.strerror}); expected a model directory") from error
    except ValueError as error:
        raise SparkError(f"{path}: not valid JSON ({error})") from error
    version = content.pop("format_version", None) if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise SparkError(f"{path}: format_version is {version!r}, expected {FORMAT_VERSION}")
    return config_lib.from_mapping(SparkConfig, content, str(path))


def finish(folder: Path, provenance: Provenance | None = None, model_card: str | Path | None = None) -> None:
    """The last step of making a model directory, when all its other files are there: whence it is, card and hashes.

    Args:
      folder: the directory that is being made, see `new_directory`.
      provenance: see `save`.
      model_card: see `save`.
    """
    provenance = Provenance() if provenance is None else provenance
    provenance.write(folder)
    if model_card is not None:
        shutil.copyfile(model_card, folder / MODEL_CARD)
    else:
        parts = {part: _part_info(folder, part) for part in stored_parts(folder)}
        sizes = {part: (facts.parameters, facts.dtype) for part, facts in parts.items()}
        (folder / MODEL_CARD).write_text(provenance_lib.model_card(provenance, sizes), encoding="utf-8")
    manifest.write_manifest(folder)


def part_path(directory: Path, part: str) -> Path:
    """Where a part's arrays lie."""
    return directory / "params" / part


def stored_parts(directory: Path) -> list[str]:
    """The parts that a directory has: all of them, unless it was converted for training."""
    return [part for part in PARTS if part_path(directory, part).is_dir()]


def copy_files(source: str | Path, destination: Path) -> None:
    """Copies the plain files of a folder."""
    destination.mkdir()
    for path in sorted(Path(source).iterdir()):
        if path.is_file():
            shutil.copyfile(path, destination / path.name)


def _voices(directory: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((directory / "voices").glob("*.json"))}


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _part_info(directory: Path, part: str) -> PartInfo:
    leaves = jax.tree.leaves(stored_part(part_path(directory, part)))
    if not leaves:
        raise SparkError(f"{directory / 'params' / part}: no such directory; expected the part's parameters")
    return PartInfo(
        parameters=sum(math.prod(leaf.shape) for leaf in leaves),
        bytes=sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves),
        dtype=np.dtype(max(leaves, key=lambda leaf: math.prod(leaf.shape)).dtype).name,
    )


def check_sizes(directory: Path) -> None:
    """Raises a SparkError unless every file of `params` has the size it was written with.

    Orbax answers a short file with pages of log, and sometimes as if its tensors had never been there.
    """
    found = {f"params/{name}": size for name, size in _sizes(directory / "params").items()}
    problems = [
        f"{directory / name} has {found[name]} bytes, expected {size}"
        if name in found
        else f"{directory / name} is missing"
        for name, size in _expected_sizes(directory).items()
        if found.get(name) != size
    ]
    if problems:
        raise SparkError(f"incomplete model: {'; '.join(problems)}")


def _expected_sizes(directory: Path) -> dict[str, int]:
    """Sizes of the files in `params`, by name relative to the directory."""
    older = directory / "params" / OLDER_FILE_LIST
    if (directory / manifest.MANIFEST).exists() or not older.exists():
        entries = manifest.read_manifest(directory)
        return {name: entry["bytes"] for name, entry in entries.items() if name.startswith("params/")}
    try:
        return {f"params/{name}": size for name, size in json.loads(older.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise SparkError(f"{older}: cannot be read ({one_line(error)})") from error
