"""A model directory: configuration, tokenizer and parameters of a whole text-to-speech system.

    DIR/config.json          SparkConfig, and "format_version"
    DIR/tokenizer/           tokenizer.json and what comes with it
    DIR/params/<part>/       one Orbax tree each for bicodec, wav2vec2 and llm, collections on top
    DIR/params/files.json    the sizes of those trees' files: a truncated one is found before it is read
    DIR/voices/NAME.json     optional voice files; default.json speaks where a request names no voice
    DIR/MODEL_CARD.md        optional

Weight matrices may be stored in a shorter type; norms, biases, gains and statistics are float32 always. A
directory is written under a temporary name and renamed when it is complete.
"""

import contextlib
import dataclasses
import functools
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
from flax.errors import FlaxError

from spark_jax import config as config_lib
from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.part_files import load_part, stored_part, write_part
from spark_jax.pytree import flatten
from spark_jax.qwen2.model import Qwen2
from spark_jax.sharding import unbox
from spark_jax.wav2vec2.model import Wav2Vec2

FORMAT_VERSION = 1
PARTS = ("bicodec", "wav2vec2", "llm")
DEFAULT_VOICE = "default.json"
MODEL_CARD = "MODEL_CARD.md"
FILE_LIST = "files.json"

# Leaves that a shorter storage type spares: their precision costs nothing, and norms need it.
_SPARED = frozenset({"scale", "bias", "gamma", "alpha", "g", "kernel_g", "mean", "var", "cluster_size"})


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What `load` returns: everything a synthesiser needs."""

    config: SparkConfig
    variables: dict[str, Any]  # part → collection → tree of arrays
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

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())


def abstract_variables(config: SparkConfig) -> dict[str, Any]:
    """Shapes and float32 types (`jax.ShapeDtypeStruct`) of every array: part → collection → tree.

    Raises:
      SparkError: the configuration's sizes do not fit together.
    """
    return {part: abstract_part(part, getattr(config, part)) for part in PARTS}


@functools.lru_cache(maxsize=16)
def abstract_part(part: str, config: Any) -> Any:
    """`abstract_variables` of one part, from its own configuration. Tracing a codec takes a second: kept."""
    if part == "bicodec":
        frames = 8 * math.prod(config.encoder.sample_ratios)
        features = (1, frames, config.encoder.input_channels)
        module, inputs = BiCodec(config), [features, (1, 2 * config.mel_params.n_fft)]
        arguments = {"train": False}
    elif part == "wav2vec2":
        module, inputs, arguments = Wav2Vec2(config), [(1, 2 * math.prod(config.conv_stride) * 10)], {}
    else:
        module, inputs, arguments = Qwen2(config), [(1, 2)], {}
    dtype = jnp.int32 if part == "llm" else jnp.float32
    try:
        return jax.eval_shape(
            lambda: unbox(module.init(jax.random.key(0), *(jnp.zeros(shape, dtype) for shape in inputs), **arguments))
        )
    except (TypeError, ValueError, ArithmeticError, FlaxError) as error:
        raise SparkError(f"{part}: the sizes do not fit together ({_brief(error)})") from error


def with_weight_dtype(tree: Any, dtype: Any) -> Any:
    """The abstract tree with its weight matrices in `dtype`; norms, biases, statistics … keep theirs."""

    def retype(path, leaf):
        spared = _name(path).rpartition("/")[2] in _SPARED
        return leaf if spared else jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(retype, tree)


def save(
    directory: str | Path,
    config: SparkConfig,
    variables: Mapping[str, Any],
    tokenizer_directory: str | Path,
    *,
    weight_dtype: Any = None,
    voices: Mapping[str, str | Path] | None = None,
    model_card: str | Path | None = None,
) -> None:
    """Writes a model directory.

    Args:
      directory: must not exist yet, or be empty.
      config: the whole system's sizes.
      variables: {"bicodec": {"params", "batch_stats", "code_statistics"}, "wav2vec2": {"params"},
        "llm": {"params"}}, plain trees or Linen's boxes.
      tokenizer_directory: its files are copied.
      weight_dtype: storage type of the weight matrices, e.g. jnp.bfloat16; None: as they are.
      voices: voice files to copy, by the names they get (without ".json"); "default" is the default voice.
      model_card: a file to copy as MODEL_CARD.md.

    Raises:
      SparkError: the directory is taken or cannot be written, or the variables are not the configuration's.
    """
    variables = unbox(dict(variables))
    problems = _differences(variables, abstract_variables(config))
    if problems:
        raise SparkError(f"{directory}: not saved, variables do not fit the configuration: {'; '.join(problems)}")
    with new_directory(directory) as folder:
        write_config(folder, config)
        copy_files(tokenizer_directory, folder / "tokenizer")
        for part in PARTS:
            write_part(folder / "params" / part, flatten(_cast(variables[part], weight_dtype)).items())
        write_file_list(folder)
        for name, path in (voices or {}).items():
            (folder / "voices").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "voices" / f"{name}.json")
        if model_card is not None:
            shutil.copyfile(model_card, folder / MODEL_CARD)


def load(directory: str | Path, llm_dtype: Any = jnp.float32) -> LoadedModel:
    """Reads a model directory onto the default device.

    Args:
      directory: the model directory.
      llm_dtype: type of the LLM's weight matrices in memory, whatever the files hold; all else is float32.

    Raises:
      SparkError: a file is missing, truncated or malformed, or tensors are missing, extra or misshapen
        (all are listed at once, before any is read).
    """
    directory = Path(directory).absolute()
    config = read_config(directory)
    if missing := [part for part in PARTS if part not in stored_parts(directory)]:
        raise SparkError(f"{directory}: holds no {' and no '.join(missing)}; expected a model of {', '.join(PARTS)}")
    tokenizer = directory / "tokenizer"
    if not tokenizer.is_dir():
        raise SparkError(f"{tokenizer}: no such directory; expected the model's tokenizer")
    _check_files(directory)
    wanted = abstract_variables(config)
    problems = _differences({part: stored_part(directory / "params" / part) for part in PARTS}, wanted)
    if problems:
        raise SparkError(f"{directory / 'params'}: {len(problems)} tensors do not fit: {'; '.join(problems)}")
    wanted["llm"] = with_weight_dtype(wanted["llm"], llm_dtype)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), wanted)
    variables = {part: load_part(directory / "params" / part, wanted[part]) for part in PARTS}
    voices = _voices(directory)
    return LoadedModel(config, variables, tokenizer, voices, voices.get(DEFAULT_VOICE.removesuffix(".json")))


def info(directory: str | Path) -> ModelInfo:
    """Sizes and facts of a model directory, from its metadata alone.

    Raises:
      SparkError: as `load`, for the files that are read.
    """
    directory = Path(directory).absolute()
    config = read_config(directory)
    _check_files(directory)
    parts = {}
    for part in stored_parts(directory):
        leaves = jax.tree.leaves(stored_part(directory / "params" / part))
        matrices = max(leaves, key=lambda leaf: math.prod(leaf.shape))
        parts[part] = PartInfo(
            parameters=sum(math.prod(leaf.shape) for leaf in leaves),
            bytes=sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves),
            dtype=np.dtype(matrices.dtype).name,
        )
    return ModelInfo(
        directory=directory,
        parts=parts,
        vocabulary=config.llm.vocab_size,
        semantic_codes=config.bicodec.quantizer.codebook_size,
        global_codes=math.prod(config.bicodec.speaker_encoder.fsq_levels),
        global_tokens=config.bicodec.speaker_encoder.token_num,
        token_rate=config.sample_rate / config.latent_hop_length,
        sample_rate=config.sample_rate,
        voices=sorted(_voices(directory)),
        bytes=sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()),
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


def stored_parts(directory: Path) -> list[str]:
    """The parts that a directory has: all of them, unless it was converted for training."""
    return [part for part in PARTS if (directory / "params" / part).is_dir()]


def write_file_list(folder: Path) -> None:
    """Writes `params/files.json`, when all parts are there."""
    sizes = {path: size for path, size in _sizes(folder / "params").items() if path != FILE_LIST}
    (folder / "params" / FILE_LIST).write_text(json.dumps(sizes, indent=0) + "\n")


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


def _check_files(directory: Path) -> None:
    """Orbax answers a short file with pages of log, and sometimes as if its tensors had never been there."""
    folder = directory / "params"
    try:
        expected = json.loads((folder / FILE_LIST).read_text())
    except (OSError, ValueError) as error:
        raise SparkError(f"{folder / FILE_LIST}: cannot be read ({_brief(error)})") from error
    found = _sizes(folder)
    problems = [
        f"{folder / path} has {found[path]} bytes, expected {size}" if path in found else f"{folder / path} is missing"
        for path, size in expected.items()
        if found.get(path) != size
    ]
    if problems:
        raise SparkError(f"incomplete model: {'; '.join(problems)}")


def _cast(tree: Any, weight_dtype: Any) -> Any:
    if weight_dtype is None:
        return tree
    types = with_weight_dtype(tree, weight_dtype)
    return jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), tree, types)


def _differences(found: Any, expected: Any) -> list[str]:
    """One line for every tensor of a tree that another tree lacks, or that has another shape there."""
    have, want = _shapes(found), _shapes(expected)
    problems = [f"missing {name} {list(shape)}" for name, shape in want.items() if name not in have]
    problems += [f"extra {name} {list(shape)}" for name, shape in have.items() if name not in want]
    return problems + [
        f"misshapen {name} {list(have[name])}, expected {list(shape)}"
        for name, shape in want.items() if name in have and have[name] != shape
    ]  # fmt: skip


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
