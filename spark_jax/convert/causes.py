"""What is given in place of a model's files, by mistake: each is named with its remedy before anything is read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spark_jax.errors import SparkError

_POINTER = b"version https://git-lfs.github.com/spec/"
_GGUF = "GGUF is a format of llama.cpp, which cannot be converted; expected the folder of the original checkpoint, with"
_SAFE = f"{_GGUF} model.safetensors and config.json"

# Ends of names by what wrote them.
_QUANTIZED = {
    "GPTQ or AWQ": (".qweight", ".qzeros", ".g_idx"),
    "bitsandbytes": (
        ".SCB",
        ".absmax",
        ".quant_map",
        ".quant_state.bitsandbytes__nf4",
        ".quant_state.bitsandbytes__fp4",
    ),
    "compressed-tensors or FP8": (".weight_packed", ".weight_scale", ".weight_scale_inv"),
}
_UNQUANTIZED = "expected the checkpoint that it was made from, in float32, bfloat16 or float16"


def refuse_pointer(path: Path) -> None:
    """Refuses the small text that Git leaves in place of a large file; a file that cannot be read is told elsewhere.

    Raises:
      SparkError: the file is a Git LFS pointer.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError:
        return
    if start == _POINTER:
        raise SparkError(
            f"{path}: a Git LFS pointer in place of the file; expected the file itself (`git lfs pull` in its folder, "
            "or download it again)"
        )


def refuse_file(path: Path) -> None:
    """Refuses a file that is given in place of its folder.

    Raises:
      SparkError: naming the folder, where that would do.
    """
    if path.suffix.lower() == ".gguf" or _starts_with(path, b"GGUF"):
        raise SparkError(f"{path}: {_SAFE}")
    raise SparkError(f"{path}: no such directory, but a file; expected its folder, {path.parent}")


def refuse_gguf(folder: Path) -> None:
    """Refuses a folder whose weights, of which no others are found, are GGUF.

    Raises:
      SparkError: it holds such a file.
    """
    if found := sorted(folder.glob("*.gguf")):
        raise SparkError(f"{found[0]}: {_SAFE}")


def check_llm(folder: Path, weights: Iterable[str]) -> None:
    """Refuses a folder that is given as a language model and is something else.

    Args:
      folder: given as --llm, or as the base of a pretraining.
      weights: names of the weight files that an LLM may have.

    Raises:
      SparkError: it is a whole release, an adapter, or of a format that is not read.
    """
    if any((folder / name).is_file() for name in weights):
        return
    if (folder / "adapter_config.json").is_file():
        raise SparkError(
            f"{folder}: a PEFT adapter, no LLM; expected it as --lora, beside the LLM that it was made for"
        )
    # Of a release on the Hub only its settings are fetched.
    if any((folder / name).exists() for name in ("LLM", "BiCodec", "config.yaml")):
        raise SparkError(f"{folder}: a whole release, no LLM; expected its folder LLM: --llm {folder / 'LLM'}")
    refuse_gguf(folder)


def check_release(folder: Path) -> None:
    """Refuses a folder that is given as a release and is a part of one, or something else.

    Raises:
      SparkError: it is a language model, an adapter, or a model directory already.
    """
    if any((folder / name).exists() for name in ("config.yaml", "BiCodec", "LLM", "wav2vec2-large-xlsr-53")):
        return
    if (folder / "params").is_dir():
        raise SparkError(
            f"{folder}: a model directory already; expected the release's layout (config.yaml, BiCodec, …)"
        )
    if (folder / "adapter_config.json").is_file():
        raise SparkError(f"{folder}: a PEFT adapter; expected a release, and the adapter as --lora {folder}")
    if (folder / "config.json").is_file():
        raise SparkError(f"{folder}: a single model; expected a release, and a language model as --llm {folder}")
    refuse_gguf(folder)


def check_adapter(folder: Path) -> None:
    """Refuses a folder that is given as an adapter and is a model.

    Raises:
      SparkError: it has a model's files and no adapter's.
    """
    if not (folder / "adapter_config.json").is_file() and (folder / "config.json").is_file():
        raise SparkError(
            f"{folder}: no adapter (it has no adapter_config.json); expected a whole LLM as --llm {folder}"
        )


def check_settings(content: Any, path: Path) -> None:
    """Refuses the config.json of quantized weights.

    Raises:
      SparkError: naming what quantized them.
    """
    settings = content.get("quantization_config") if isinstance(content, dict) else None
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        by = f" by {method}" if isinstance(method, str) else ""
        raise SparkError(f"{path}: quantization_config: the weights are quantized{by}; {_UNQUANTIZED}")


def check_names(names: Iterable[str], path: Path) -> None:
    """Refuses tensors that are quantized, or that hold an adapter beside its base.

    Raises:
      SparkError: naming one of them.
    """
    for name in names:
        for method, ends in _QUANTIZED.items():
            if name.endswith(ends):
                raise SparkError(f"{path}: quantized weights ({method}: {name}); {_UNQUANTIZED}")
        if ".lora_A." in name or ".lora_embedding_A" in name or ".base_layer." in name:
            raise SparkError(
                f"{path}: an adapter that is not merged ({name}); expected the model after merge_and_unload, or the "
                "base with the adapter as --lora"
            )


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False
