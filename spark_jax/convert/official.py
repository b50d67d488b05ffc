"""The release's directory layout → one model directory.

    OFFICIAL/config.yaml
    OFFICIAL/BiCodec/{config.yaml, model.safetensors}
    OFFICIAL/wav2vec2-large-xlsr-53/{config.json, preprocessor_config.json, pytorch_model.bin}
    OFFICIAL/LLM/{config.json, model.safetensors, tokenizer files}

Weights may be safetensors or pytorch_model.bin, in one piece or in shards. All descriptions are checked before any
value is read; then the tensors stream through memory, one at a time.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spark_jax.config import SparkConfig
from spark_jax.convert import weights
from spark_jax.convert.engine import Import, raise_faults
from spark_jax.convert.formats.tensors import DTYPES
from spark_jax.convert.hub import local_directory
from spark_jax.convert.lora import ADAPTER_FILES, merge
from spark_jax.convert.release import RELEASE_PARTS, check_parts, read_config, table
from spark_jax.convert.tokenizer_files import check_tokenizer, copy_tokenizer
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.parameters import PARTS, RECORDS, abstract_part, with_weight_dtype
from spark_jax.model_directory.parts import write_arrays
from spark_jax.model_directory.provenance import Provenance, Source
from spark_jax.shared.files import new_directory
from spark_jax.shared.pytree import unflatten

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
        release's.
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
    config = read_config(origin.folder, parts, origin.folders["llm"])
    if "llm" in parts:
        check_tokenizer(origin.folders["llm"], config.llm, config.bicodec if "bicodec" in parts else None)
    with new_directory(destination) as folder, ThreadPoolExecutor(1) as background:
        files = {part: weights.find(origin.folders[part]) for part in parts}
        tensors = {part: weights.read(file) for part, file in files.items()}
        if origin.lora is not None:
            tensors["llm"], merged = merge(tensors["llm"], config.llm, origin.lora)
            config = dataclasses.replace(config, llm=merged)
        imports = {part: Import(table(part, config), tensors[part], _target(part, config, dtype)) for part in parts}
        raise_faults({str(files[part]): job.faults for part, job in imports.items()})
        provenance = background.submit(origin.provenance, files)
        model_directory.write_config(folder, config, parts)
        if "llm" in parts:
            copy_tokenizer(origin.folders["llm"], folder / "tokenizer")
        for part, job in imports.items():
            write_arrays(model_directory.part_path(folder, part), job.leaves())
        raise_faults({str(files[part]): job.faults for part, job in imports.items()})
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
    """

    folder: Path
    folders: dict[str, Path]
    llm: Path | None
    lora: Path | None
    names: dict[Path, str]

    @classmethod
    def of(cls, source: str | Path, parts: Sequence[str], llm: str | Path | None, lora: str | Path | None):
        """Finds them, by download where they are Hub ids."""
        names = {}

        def local(place: str | Path | None, patterns: Sequence[str] = ("*",)) -> Path | None:
            if place is None:
                return None
            folder, name = local_directory(place, patterns)
            if name is not None:
                names[folder] = name
            return folder

        other, lora = local(llm), local(lora)
        needed = [RELEASE_PARTS[part].folder for part in parts if part != "llm" or other is None]
        folder = local(source, ["config.yaml", *(f"{name}/*" for name in needed)])
        folders = {part: folder / release.folder for part, release in RELEASE_PARTS.items()}
        return cls(folder, folders | ({"llm": other} if other is not None else {}), other, lora, names)

    def provenance(self, files: Mapping[str, Path]) -> Provenance:
        """Names and hashes of the weight files."""
        pieces = {part: weights.files(file) for part, file in files.items()}
        taken = [("llm", self.llm, pieces.pop("llm"))] if self.llm is not None else []
        if self.lora is not None:
            taken.append(("lora", self.lora, [self.lora / name for name in ADAPTER_FILES]))
        taken.insert(0, ("model", self.folder, [file for part in pieces.values() for file in part]))
        return Provenance(
            tuple(
                Source.of(folder, of_role, name=self.names.get(folder), role=role)
                for role, folder, of_role in taken
                if of_role
            )
        )


def _target(part: str, config: SparkConfig, dtype: str) -> Any:
    """Shapes and storage types of a part."""
    record = RECORDS[part]
    target = abstract_part(part, getattr(config, record.section))
    return with_weight_dtype(target, DTYPES[dtype]) if record.has_dtype else target


def read_variables(part: str, file: Path, config: SparkConfig, target: Any) -> dict[str, Any]:
    """Reads the variables of "bicodec", "wav2vec2" or "llm" from its weight file (or index of shards), in memory.

    Args:
      target: shapes and types of the result, see `model_directory.abstract_variables`.

    Returns:
      Numpy arrays: collection → tree.
    """
    job = Import(table(part, config), weights.read(file), target)
    raise_faults({str(file): job.faults})
    variables = unflatten(dict(job.leaves()))
    raise_faults({str(file): job.faults})
    return variables
