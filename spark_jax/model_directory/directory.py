"""A model directory: configuration, tokenizer and parameters of a text-to-speech system, or of some of its parts.

    DIR/config.json          SparkConfig and "format_version"; without the sizes of parts that it lacks and that are the
                             release's
    DIR/tokenizer/           tokenizer.json and what comes with it, where it has an LLM
    DIR/vocabulary.json      labels of the recognizer, where it has one; DIR/lexicon.json: how words are written in them
    DIR/params/<part>/       one Orbax tree each for bicodec, wav2vec2, llm and recognizer, collections on top
    DIR/voices/NAME.json     optional voice files; default.json speaks where a request names no voice
    DIR/provenance.json      where the weights come from: sources and their hashes, versions, date
    DIR/MODEL_CARD.md        the same for people, or a card of one's own
    DIR/manifest.json        size and SHA-256 of every other file, for `spark-jax info --check`

Weight matrices may be stored in a shorter type; norms, biases, gains and statistics are float32 always.

`save` and the conversions make a finished directory: under a temporary name, which is renamed when it is complete, with
provenance and manifest, and nothing in it changes any more. A run writes the parts that it trains with `write_parts`,
each anew at every evaluation. Such a directory has neither provenance nor manifest, but the sizes of each part's files
(see `manifest`); `load`, `info`, conversions and trainings read it like any other.
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.model_directory import manifest
from spark_jax.model_directory import provenance as provenance_lib
from spark_jax.model_directory.layout import (
    TOKENIZER,
    combined_config,
    largest,
    open_part,
    open_parts,
    part_path,
    read_config,
    read_system,
    stored_parts,
    write_config,
)
from spark_jax.model_directory.parameters import (
    PARTS,
    RECOGNIZER,
    RECORDS,
    abstract_part,
    abstract_variables,
    cast_weights,
    check_fit,
    recognizer_labels,
    target_variables,
    with_weight_dtype,
)
from spark_jax.model_directory.parts import stored_arrays, write_arrays
from spark_jax.model_directory.provenance import Provenance
from spark_jax.sharding import unbox
from spark_jax.shared import distributed
from spark_jax.shared.files import (
    cannot_write,
    new_directory,
    read_bytes,
    replace_directory,
    temporary_name,
    write_bytes,
    write_text,
)
from spark_jax.shared.pytree import flatten
from spark_jax.text.vocabulary import LEXICON, VOCABULARY

__all__ = [
    "PARTS",
    "LoadedModel",
    "ModelInfo",
    "PartInfo",
    "Provenance",
    "abstract_part",
    "abstract_variables",
    "copy_files",
    "finish",
    "info",
    "load",
    "part_path",
    "read_config",
    "read_part",
    "read_system",
    "save",
    "stored_parts",
    "with_weight_dtype",
    "write_config",
    "write_parts",
]

DEFAULT_VOICE = "default.json"
MODEL_CARD = "MODEL_CARD.md"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What `load` returns: everything a synthesizer needs."""

    config: SparkConfig
    variables: dict[str, Any]  # part → collection → tree of arrays, of the parts that were asked for
    tokenizer_directory: Path
    recognizer_directory: Path | None  # whose files say what the recognizer's labels are; None: there is none
    voices: dict[str, Path]  # voice files by name, without ".json"
    default_voice: Path | None


@dataclasses.dataclass(frozen=True)
class PartInfo:
    """The size of one part as stored."""

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
        """The number of all parameters and statistics."""
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
    vocabulary: str | Path | None = None,
    lexicon: str | Path | None = None,
) -> None:
    """Writes a finished model directory, with provenance, model card and hashes.

    Args:
      directory: must not exist yet, or be empty.
      config: the whole system's sizes.
      variables: {"bicodec": {"params", "batch_stats", "code_statistics"}, "wav2vec2": {"params"},
        "llm": {"params"}}, plain trees or Linen's boxes; a recognizer may be among them.
      tokenizer_directory: its files are copied.
      weight_dtype: storage type of the weight matrices, e.g. jnp.bfloat16; None: as they are.
      voices: voice files to copy, by the names they get (without ".json"); "default" is the default voice.
      model_card: a file to copy as MODEL_CARD.md; None: one is made.
      provenance: where the variables come from; None: versions and date alone.
      vocabulary, lexicon: files of a recognizer to copy, see `text.vocabulary`.

    Raises:
      SparkError: the directory is taken or cannot be written, or the variables are not the configuration's.
    """
    variables = unbox(dict(variables))
    wanted = abstract_variables(config)
    if RECOGNIZER in variables:
        labels = recognizer_labels(variables[RECOGNIZER])
        wanted[RECOGNIZER] = abstract_part(RECOGNIZER, config.wav2vec2, labels)
    check_fit(f"{directory}: not saved", variables, wanted)
    with new_directory(directory) as folder:
        write_config(folder, config)
        copy_files(tokenizer_directory, folder / TOKENIZER)
        for part in wanted:
            write_arrays(part_path(folder, part), flatten(cast_weights(variables[part], weight_dtype)).items())
        for name, path in {VOCABULARY: vocabulary, LEXICON: lexicon}.items():
            if path is not None:
                _copy(path, folder / name)
        for name, path in (voices or {}).items():
            _copy(path, folder / "voices" / f"{name}.json")
        finish(folder, provenance, model_card)


def write_parts(
    directory: str | Path, config: SparkConfig, parts: Mapping[str, Any], tokenizer: str | Path | None = None
) -> None:
    """Writes parts into the model directory of a run, or replaces those that it has, each in one step.

    All processes of a run call it, and each writes its shards. A kill leaves the older parts, or the new ones, of each
    part all or nothing. Without parts only the configuration is written: a run that begins so learns at once whether it
    may write into the directory.

    Args:
      directory: made where it does not exist; other files in it stay as they are.
      config: the whole system's; sizes of the parts that are written go into `config.json`.
      parts: variables by the part's name, collections on top, plain trees or Linen's boxes: all at the same time on
        all processes.
      tokenizer: a folder whose files become the directory's tokenizer; None: it stays as it is.

    Raises:
      SparkError: the directory is a finished one, with a manifest; it cannot be written; or the variables are not the
        configuration's.
    """
    directory, parts = Path(directory).absolute(), unbox(dict(parts))
    if (directory / manifest.MANIFEST).exists():
        raise SparkError(f"{directory}: a finished model directory, which does not change; expected a folder of a run")
    for part, variables in parts.items():
        labels = recognizer_labels(variables) if part == RECOGNIZER else None
        wanted = abstract_part(part, getattr(config, RECORDS[part].section), labels)
        check_fit(f"{directory}: {part} not written", variables, wanted)
    fresh = directory / "params" / ".new"  # the same in all processes; Orbax takes no hidden name for a part itself
    if distributed.is_primary():
        shutil.rmtree(fresh, ignore_errors=True)  # of a write that a kill has cut short
        try:
            (fresh if parts else directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(directory, error) from error
        write_config(directory, config, parts)
        if tokenizer is not None:
            copied = temporary_name(directory / TOKENIZER)
            copy_files(tokenizer, copied)
            replace_directory(copied, directory / TOKENIZER)
    distributed.barrier(f"{directory} is prepared")
    for part, variables in parts.items():
        write_arrays(fresh / part, flatten(variables).items())
        if distributed.is_primary():
            manifest.write_part_sizes(fresh / part)
            replace_directory(fresh / part, part_path(directory, part))
    if distributed.is_primary():
        shutil.rmtree(fresh, ignore_errors=True)
    distributed.barrier(f"{directory} is complete")


def read_part(source: str | Path, part: str, abstract: Any = None) -> Any:
    """Reads the variables of one part; all processes of a run call it, and each reads its shards.

    Args:
      source: a model directory, a run or its folder `best`; or `DIR/params/<part>` itself. Folders that trainings
        wrote before they wrote model directories are read, too.
      part: "bicodec", "wav2vec2", "llm" or "recognizer".
      abstract: the tree that is expected (`jax.ShapeDtypeStruct`), collections on top, with types and shardings of the
        result; without a sharding an array comes onto the default device. None: whatever is stored.

    Returns:
      Collection → tree of arrays.

    Raises:
      SparkError: the part is not there or is damaged, or tensors are missing, extra or misshapen (all are listed).
    """
    stored = open_part(source, part)
    found = stored.arrays
    if abstract is not None:
        check_fit(stored.folder, found, abstract)
    return stored.read(found if abstract is None else abstract)


def load(
    directory: str | Path,
    *,
    parts: Sequence[str] = PARTS,
    base: str | Path | None = None,
    llm_dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
) -> LoadedModel:
    """Reads a model directory onto the default device, or straight into the shards of a mesh.

    Args:
      directory: a model directory or a run.
      parts: those of "bicodec", "wav2vec2", "llm" and "recognizer" that are wanted; the others are not read.
      base: another such directory, from which the parts come that `directory` lacks. Voices come from the one that has
        the codec, since their ids mean something to it alone.
      llm_dtype: type of the LLM's weight matrices in memory, whatever the files hold; all else is float32.
      mesh: divides each array as the table of `spark_jax.sharding` says; each host reads only the chunks that its
        shards lie in. None: everything on the default device.

    Raises:
      SparkError: a file is missing, truncated or malformed, tensors are missing, extra or misshapen, or the mesh
        does not divide them (all are listed at once, before any is read); or the two directories do not fit.
    """
    directory = Path(directory).absolute()
    if unknown := [part for part in parts if part not in RECORDS]:
        raise SparkError(f"parts: {', '.join(map(repr, unknown))} unknown, expected some of {', '.join(PARTS)}")
    found = open_parts(directory)
    config = read_config(directory)
    if base is not None:
        found = open_parts(base) | found
        config = combined_config(directory, found) if found else config
    if missing := [part for part in parts if part not in found]:
        raise SparkError(f"{directory}: holds no {' and no '.join(missing)}; expected a model of {', '.join(parts)}")
    tokenizer = found["llm"].tokenizer if "llm" in found else directory / TOKENIZER
    if "llm" in parts and not tokenizer.is_dir():
        raise SparkError(f"{tokenizer}: no such directory; expected the model's tokenizer")
    stored = {part: found[part].arrays for part in parts}
    labels = recognizer_labels(stored[RECOGNIZER]) if RECOGNIZER in stored else None
    wanted = target_variables(config, parts, llm_dtype, mesh, labels)
    check_fit(directory / "params", stored, wanted)
    variables = {part: found[part].read(wanted[part]) for part in parts}
    voices = _voices(found["bicodec"].directory if "bicodec" in found else directory)
    recognizer = found[RECOGNIZER].directory if RECOGNIZER in found else None
    default_voice = voices.get(DEFAULT_VOICE.removesuffix(".json"))
    return LoadedModel(config, variables, tokenizer, recognizer, voices, default_voice)


def info(directory: str | Path) -> ModelInfo:
    """Returns sizes and facts of a model directory or a run, from its metadata alone.

    Raises:
      SparkError: as `load`, for the files that are read.
    """
    directory = Path(directory).absolute()
    config = read_config(directory)
    return ModelInfo(
        directory=directory,
        parts={name: _part_info(part.arrays) for name, part in open_parts(directory).items()},
        vocabulary=config.llm.vocab_size,
        semantic_codes=config.bicodec.quantizer.codebook_size,
        global_codes=math.prod(config.bicodec.speaker_encoder.fsq_levels),
        global_tokens=config.bicodec.speaker_encoder.token_num,
        token_rate=config.sample_rate / config.latent_hop_length,
        sample_rate=config.sample_rate,
        voices=sorted(_voices(directory)),
        bytes=sum(manifest.file_sizes(directory).values()),
        provenance=provenance_lib.read_provenance(directory),
    )


def finish(folder: Path, provenance: Provenance | None = None, model_card: str | Path | None = None) -> None:
    """Writes provenance, model card and hashes: the last step of making a model directory, when all else is there.

    Args:
      folder: the directory that is being made, see `files.new_directory`.
      provenance: see `save`.
      model_card: see `save`.

    Raises:
      SparkError: a file cannot be read or written.
    """
    provenance = Provenance() if provenance is None else provenance
    provenance.write(folder)
    if model_card is not None:
        _copy(model_card, folder / MODEL_CARD)
    else:
        parts = {part: _part_info(stored_arrays(part_path(folder, part))) for part in stored_parts(folder)}
        sizes = {part: (facts.parameters, facts.dtype) for part, facts in parts.items()}
        write_text(folder / MODEL_CARD, provenance_lib.model_card(provenance, sizes))
    manifest.write_manifest(folder)


def copy_files(source: str | Path, destination: Path) -> None:
    """Copies the plain files of a folder.

    Raises:
      SparkError: a file cannot be read or written.
    """
    destination.mkdir()
    for path in sorted(Path(source).iterdir()):
        if path.is_file():
            _copy(path, destination / path.name)


def _copy(source: str | Path, destination: Path) -> None:
    destination.parent.mkdir(exist_ok=True)
    write_bytes(destination, read_bytes(source))


def _voices(directory: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((directory / "voices").glob("*.json"))}


def _part_info(arrays: Any) -> PartInfo:
    leaves = jax.tree.leaves(arrays)
    return PartInfo(
        parameters=sum(math.prod(leaf.shape) for leaf in leaves),
        bytes=sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves),
        dtype=np.dtype(largest(arrays).dtype).name,
    )
