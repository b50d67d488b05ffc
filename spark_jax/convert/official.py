"""Converts the release's directory layout to one model directory.

    OFFICIAL/config.yaml
    OFFICIAL/BiCodec/{config.yaml, model.safetensors}
    OFFICIAL/wav2vec2-large-xlsr-53/{config.json, preprocessor_config.json, pytorch_model.bin}
    OFFICIAL/LLM/{config.json, model.safetensors, tokenizer files}

Weights may be safetensors or pytorch_model.bin, in one piece or in shards. All descriptions are checked before any
value is read; then the tensors stream through memory, one at a time.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spark_jax.config import SparkConfig
from spark_jax.convert import weights
from spark_jax.convert.causes import check_adapter, check_llm, check_names, check_release
from spark_jax.convert.engine import Import, raise_faults
from spark_jax.convert.formats.tensors import DTYPES, SourceTensor, is_finite
from spark_jax.convert.hub import local_adapter, local_directory, local_llm
from spark_jax.convert.lora import adapter_files, merge
from spark_jax.convert.release import RELEASE_PARTS, check_parts, read_config, table
from spark_jax.convert.tokenizer_files import check_tokenizer, copy_tokenizer
from spark_jax.convert.wrappers import unwrap
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.layout import StoredPart, holds_part, open_parts
from spark_jax.model_directory.parameters import PARTS, RECORDS, abstract_part, differences, with_weight_dtype
from spark_jax.model_directory.parts import write_arrays
from spark_jax.model_directory.provenance import Provenance, Source
from spark_jax.shared.files import new_directory
from spark_jax.shared.pytree import flatten, unflatten

STORAGE = ("float32", "bfloat16")  # what the LLM's weights may be stored as


def convert(
    source: str | Path,
    destination: str | Path,
    dtype: str = "float32",
    parts: Sequence[str] = PARTS,
    llm: str | Path | None = None,
    lora: str | Path | None = None,
) -> model_directory.ModelInfo:
    """Converts an official directory to a model directory.

    Args:
      source: the official directory, or the id of a Hub repository that holds one.
      destination: the model directory to make; must not exist, or be empty. It appears when it is complete.
      dtype: "float32" or "bfloat16": storage type of the LLM's weight matrices. Its norms and biases and
        the whole of BiCodec and wav2vec2 are float32 always.
      parts: what to convert; a directory without all three serves training, not speech.
      llm: folder (or Hub id) of another LLM of the same tokens, a fine-tune with its tokenizer, in place of the
        release's: in the official form, a model directory or a run.
      lora: folder (or Hub id) of a PEFT adapter to merge into the LLM, in float32.

    Raises:
      SparkError: a file is missing, damaged or tries to run code; a setting is not supported; tensors are
        missing, extra, misshapen, no numbers, truncated or not finite (all are listed at once); the tokenizer
        lacks Spark tokens; the adapter cannot be merged; the destination is taken.
    """
    if dtype not in STORAGE:
        raise SparkError(f"dtype is {dtype!r}, expected one of {', '.join(STORAGE)}")
    parts = check_parts(parts)
    if "llm" not in parts and (llm is not None or lora is not None):
        raise SparkError(f"parts are {','.join(parts)}; another LLM or an adapter needs llm")
    origin = _Origin.of(source, parts, llm, lora)
    official = [part for part in parts if part not in origin.stored]
    config = read_config(origin.folder, official, origin.folders["llm"])
    for stored in origin.stored.values():
        config = dataclasses.replace(
            config, llm=stored.config.llm, sampling=stored.config.sampling, text=stored.config.text
        )
    if "llm" in parts:
        check_tokenizer(origin.tokenizer, config.llm, config.bicodec if "bicodec" in parts else None)
    with new_directory(destination) as folder, ThreadPoolExecutor(1) as background:
        files = {part: weights.find(origin.folders[part]) for part in official}
        tensors = {part: read_tensors(part, file, config) for part, file in files.items()}
        if origin.lora is not None:
            tensors["llm"], merged = merge(tensors["llm"], config.llm, origin.lora)
            config = dataclasses.replace(config, llm=merged)
        imports: dict[str, Import | _StoredImport] = {
            part: Import(table(part, config), tensors[part], _target(part, config, dtype)) for part in official
        }
        for part, stored in origin.stored.items():
            imports[part] = _StoredImport(stored, _target(part, config, dtype))
        sources = {part: str(files[part] if part in files else origin.stored[part].folder) for part in parts}
        raise_faults({sources[part]: job.faults for part, job in imports.items()})
        provenance = background.submit(origin.provenance, files)
        model_directory.write_config(folder, config, parts)
        if "llm" in parts:
            copy_tokenizer(origin.tokenizer, folder / "tokenizer")
        for part in parts:
            write_arrays(model_directory.part_path(folder, part), imports[part].leaves())
        raise_faults({sources[part]: job.faults for part, job in imports.items()})
        model_directory.finish(folder, provenance.result())
    return model_directory.info(destination)


@dataclasses.dataclass(frozen=True)
class _Origin:
    """The directories that a conversion reads.

    Attributes:
      folder: in the official layout.
      folders: of each part's weights.
      llm, lora: directories given besides.
      names: Hub ids of the directories that have one.
      stored: the LLM, where the directory given besides is one of our own.
    """

    folder: Path
    folders: dict[str, Path]
    llm: Path | None
    lora: Path | None
    names: dict[Path, str]
    stored: dict[str, StoredPart]

    @classmethod
    def of(cls, source: str | Path, parts: Sequence[str], llm: str | Path | None, lora: str | Path | None) -> "_Origin":
        """Finds them, by download where they are Hub ids."""
        names = {}

        def local(place: str | Path | None, find: Callable[..., tuple[Path, str | None]]) -> Path | None:
            if place is None:
                return None
            folder, name = find(place)
            if name is not None:
                names[folder] = name
            return folder

        other, lora = local(llm, local_llm), local(lora, local_adapter)
        needed = [RELEASE_PARTS[part].folder for part in parts if part != "llm" or other is None]
        folder = local(source, partial(local_directory, patterns=["config.yaml", *(f"{name}/*" for name in needed)]))
        check_release(folder)
        folders = {part: folder / release.folder for part, release in RELEASE_PARTS.items()}
        stored = {"llm": open_parts(other)["llm"]} if other is not None and holds_part(other, "llm") else {}
        if other is not None and not stored:
            check_llm(other, weights.FILES)
        if lora is not None:
            check_adapter(lora)
        if stored and lora is not None:
            raise SparkError(f"{other}: an adapter merges into an LLM in the official form; expected its export")
        return cls(folder, folders | ({"llm": other} if other is not None else {}), other, lora, names, stored)

    @property
    def tokenizer(self) -> Path:
        """The folder of the LLM's tokenizer."""
        return self.stored["llm"].tokenizer if self.stored else self.folders["llm"]

    def provenance(self, files: Mapping[str, Path]) -> Provenance:
        """Returns names and hashes of the weight files."""
        pieces = {part: weights.files(file) for part, file in files.items()}
        for part, stored in self.stored.items():
            pieces[part] = [file for file in stored.folder.rglob("*") if file.is_file()]
        taken = [("llm", self.llm, pieces.pop("llm"))] if self.llm is not None else []
        if self.lora is not None:
            taken.append(("lora", self.lora, adapter_files(self.lora)))
        taken.insert(0, ("model", self.folder, [file for part in pieces.values() for file in part]))
        return Provenance(
            tuple(
                Source.of(folder, of_role, name=self.names.get(folder), role=role)
                for role, folder, of_role in taken
                if of_role
            )
        )


class _StoredImport:
    """A part of a model directory on its way into another: as `Import`, from arrays that are ours already.

    Attributes:
      faults: one line for each array that does not fit; `leaves` adds those whose values are not finite.
    """

    def __init__(self, stored: StoredPart, target: Any):
        self._stored, self._wanted = stored, flatten(target)
        self.faults = differences(stored.arrays, target)

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields path and values of each array, in the target's types."""
        for path, values in self._stored.leaves():
            dtype = self._wanted[path].dtype
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                cast = values.astype(dtype, copy=False)
            if not is_finite(cast):
                self.faults.append(f"{path} holds values that are not finite as {dtype}")
            yield path, cast
            del cast, values


def _target(part: str, config: SparkConfig, dtype: str) -> Any:
    """Shapes and storage types of a part."""
    record = RECORDS[part]
    target = abstract_part(part, getattr(config, record.section))
    return with_weight_dtype(target, DTYPES[dtype]) if record.has_dtype else target


def read_tensors(part: str, file: Path, config: SparkConfig) -> dict[str, SourceTensor]:
    """Reads the tensors of a part's weight file, by the names of the release.

    Warns:
      UserWarning: names of wrappers were left out, see `unwrap`.

    Raises:
      SparkError: a file is missing or damaged, quantized, or holds an adapter that is not merged.
    """
    tensors = weights.read(file)
    check_names(tensors, file)
    return unwrap(tensors, table(part, config), file)


def read_variables(part: str, file: Path, config: SparkConfig, target: Any) -> dict[str, Any]:
    """Reads the variables of "bicodec", "wav2vec2" or "llm" from its weight file (or index of shards), in memory.

    Args:
      target: shapes and types of the result, see `model_directory.abstract_variables`.

    Returns:
      Numpy arrays: collection → tree.
    """
    job = Import(table(part, config), read_tensors(part, file, config), target)
    raise_faults({str(file): job.faults})
    variables = unflatten(dict(job.leaves()))
    raise_faults({str(file): job.faults})
    return variables
