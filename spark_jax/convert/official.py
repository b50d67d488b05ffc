"""The release's directory layout → one model directory.

    OFFICIAL/config.yaml
    OFFICIAL/BiCodec/{config.yaml, model.safetensors}
    OFFICIAL/wav2vec2-large-xlsr-53/{config.json, preprocessor_config.json, pytorch_model.bin}
    OFFICIAL/LLM/{config.json, model.safetensors, tokenizer files}

Weights may be safetensors or pytorch_model.bin, in one piece or in shards. All descriptions are checked before any
value is read; then the tensors stream through memory, one at a time.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spark_jax import model_directory
from spark_jax.config import BiCodecConfig, Qwen2Config, SparkConfig
from spark_jax.convert import weights
from spark_jax.convert.configuration import BICODEC, LLM, WAV2VEC2, read_config
from spark_jax.convert.engine import Import
from spark_jax.convert.tensors import DTYPES
from spark_jax.errors import SparkError
from spark_jax.parameters import PARTS, abstract_part, with_weight_dtype
from spark_jax.part_files import write_part
from spark_jax.provenance import Provenance, Source
from spark_jax.pytree import unflatten
from spark_jax.tokenizer import SparkTokenizer

STORAGE = ("float32", "bfloat16")  # what the LLM's weights may be stored as
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip


def convert(
    source: str | Path,
    destination: str | Path,
    dtype: str = "float32",
    parts: Sequence[str] = PARTS,
    llm: str | Path | None = None,
    name: str | None = None,
) -> model_directory.ModelInfo:
    """Converts an official directory to a model directory.

    Args:
      source: the official directory.
      destination: the model directory to make; must not exist, or be empty. It appears when it is complete.
      dtype: "float32" or "bfloat16": storage type of the LLM's weight matrices. Its norms and biases and
        the whole of BiCodec and wav2vec2 are float32 always.
      parts: what to convert; a directory without all three serves training, not speech.
      llm: folder of another LLM of the same tokens (a fine-tune, with its tokenizer) in place of the release's.
      name: of the source in the provenance, a Hub id; None: the directory's.

    Raises:
      SparkError: a file is missing, damaged or tries to run code; a setting is not supported; tensors are
        missing, extra, misshapen, no numbers, truncated or not finite (all are listed at once); the tokenizer
        lacks Spark tokens; the destination is taken.
    """
    source = Path(source)
    if dtype not in STORAGE:
        raise SparkError(f"dtype is {dtype!r}, expected one of {', '.join(STORAGE)}")
    parts = check_parts(parts)
    folders = {
        "bicodec": source / BICODEC,
        "wav2vec2": source / WAV2VEC2,
        "llm": source / LLM if llm is None else Path(llm),
    }
    config = read_config(source, parts, folders["llm"])
    if "llm" in parts:
        check_tokenizer(folders["llm"], config.llm, config.bicodec if "bicodec" in parts else None)
    targets = {part: abstract_part(part, getattr(config, part)) for part in parts}
    if "llm" in parts:
        targets["llm"] = with_weight_dtype(targets["llm"], DTYPES[dtype])
    with model_directory.new_directory(destination) as folder, ThreadPoolExecutor(1) as background:
        files = {part: weights.find(folders[part]) for part in parts}
        sources = {part: weights.read(file) for part, file in files.items()}
        imports = {part: Import(weights.table(part, config), sources[part], targets[part]) for part in parts}
        raise_faults({str(files[part]): job.faults for part, job in imports.items()})
        provenance = background.submit(_provenance, source, files, llm, name)
        model_directory.write_config(folder, config, parts)
        if "llm" in parts:
            copy_tokenizer(folders["llm"], folder / "tokenizer")
        for part, job in imports.items():
            write_part(model_directory.part_path(folder, part), job.leaves())
        raise_faults({str(files[part]): job.faults for part, job in imports.items()})
        model_directory.finish(folder, provenance.result())
    return model_directory.info(destination)


def _provenance(source: Path, files: Mapping[str, Path], llm: Path | None, name: str | None) -> Provenance:
    """Names and hashes of the weight files."""
    pieces = {part: weights.files(file) for part, file in files.items()}
    other = pieces.pop("llm", []) if llm is not None else []
    sources = [Source.of(source, [file for part in pieces.values() for file in part], name=name)] if pieces else []
    return Provenance((*sources, Source.of(llm, other, role="llm")) if other else tuple(sources))


def read_part(part: str, file: Path, config: SparkConfig, target: Any) -> dict[str, Any]:
    """The variables of "bicodec", "wav2vec2" or "llm" from its weight file (or index of shards), in memory.

    Args:
      target: shapes and types of the result, see `model_directory.abstract_variables`.

    Returns:
      Numpy arrays: collection → tree.
    """
    job = Import(weights.table(part, config), weights.read(file), target)
    raise_faults({str(file): job.faults})
    variables = unflatten(dict(job.leaves()))
    raise_faults({str(file): job.faults})
    return variables


def check_parts(parts: Sequence[str]) -> list[str]:
    """The parts in their order.

    Raises:
      SparkError: there is none, or one that does not exist.
    """
    if not parts or set(parts) - set(PARTS):
        raise SparkError(f"parts are {','.join(parts) or 'none'}, expected some of {','.join(PARTS)}")
    return [part for part in PARTS if part in parts]


def raise_faults(faults: Mapping[str, Sequence[str]]) -> None:
    """One SparkError for all faults of all files; none if there is none."""
    found = {file: lines for file, lines in faults.items() if lines}
    if found:
        raise SparkError(
            "; ".join(f"{file}: {len(lines)} tensors do not fit: {'; '.join(lines)}" for file, lines in found.items())
        )


def check_tokenizer(folder: Path, llm: Qwen2Config, codec: BiCodecConfig | None) -> SparkTokenizer:
    """The tokenizer of a folder, once it is known to fit the LLM's embedding and the codec's codes (None: any).

    Raises:
      SparkError: it does not fit, or is none.
    """
    tokenizer = SparkTokenizer.load(folder)
    if codec is not None:
        counts = {
            "semantic": (len(tokenizer.semantic_ids), codec.quantizer.codebook_size),
            "global": (len(tokenizer.global_ids), math.prod(codec.speaker_encoder.fsq_levels)),
        }
        for kind, (found, expected) in counts.items():
            if found != expected:
                raise SparkError(
                    f"{folder}: the tokenizer has {found} {kind} tokens, the codec has {expected} codes"
                )
    if tokenizer.vocab_size > llm.vocab_size:
        raise SparkError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the LLM's vocab_size is {llm.vocab_size}"
        )
    return tokenizer


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copies the files of a tokenizer, which must be readable at least.

    Raises:
      SparkError: a file is not what its name says.
    """
    destination.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        path = source / name
        if path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
                if path.suffix == ".json" and not isinstance(json.loads(text), dict):
                    raise ValueError("no mapping")
            except (ValueError, RecursionError) as error:
                raise SparkError(f"{path}: malformed ({' '.join(str(error).split())})") from error
            shutil.copyfile(path, destination / name)
