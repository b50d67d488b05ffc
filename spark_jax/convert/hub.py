"""Finds a model's files in a directory or, by its id, on the Hugging Face Hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from spark_jax.convert.causes import refuse_file
from spark_jax.convert.tokenizer_files import TOKENIZER_FILES
from spark_jax.errors import SparkError, one_line

# What a language model and an adapter consist of. The second weights are fetched where the first are not there: many
# repositories hold both, and other formats, checkpoints and logs beside them.
LLM_FILES = (
    ("config.json", "generation_config.json", "config.yaml", "adapter_config.json", "manifest.json", *TOKENIZER_FILES),
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "params/*", "tokenizer/*"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)
ADAPTER_FILES = (("adapter_config.json", "config.json"), ("adapter_model.safetensors",), ("adapter_model.bin",))


def local_llm(source: str | Path) -> tuple[Path, str | None]:
    """Returns what `local_directory` does for a language model with its tokenizer; nothing else is downloaded."""
    return _with_weights(source, *LLM_FILES)


def local_adapter(source: str | Path) -> tuple[Path, str | None]:
    """Returns what `local_directory` does for a PEFT adapter; nothing else is downloaded."""
    return _with_weights(source, *ADAPTER_FILES)


def _with_weights(
    source: str | Path, settings: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> tuple[Path, str | None]:
    folder, name = local_directory(source, [*settings, *first])
    if name is None or any(path.is_file() for pattern in first for path in folder.glob(pattern)):
        return folder, name
    return local_directory(source, [*settings, *second])


def local_directory(source: str | Path, patterns: Sequence[str] = ("*",)) -> tuple[Path, str | None]:
    """Returns the directory of a source, and its Hub id where it is one; downloads what is not here yet.

    Args:
      source: a directory, or the id of a repository, "owner/name", which is downloaded to the Hub's cache.
      patterns: files of a repository that are wanted, as for a shell.

    Raises:
      SparkError: there is no such directory; the Hub cannot be reached, has no such repository, or does not give it.
    """
    if Path(source).is_dir():
        return Path(source), None
    name = str(source)
    if Path(source).is_file():
        refuse_file(Path(source))
    if Path(source).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise SparkError(f"{source}: no such directory, and no id of a Hub repository (owner/name)")
    import huggingface_hub  # takes a second
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns))), name
    except errors.GatedRepoError as error:
        raise SparkError(f"{name}: the Hub gives it to people who have accepted its terms (`hf auth login`)") from error
    except errors.RepositoryNotFoundError as error:
        raise SparkError(f"{name}: no such directory here, and no (public) repository of the Hub") from error
    except Exception as error:  # offline mode, no network, time-outs, a full disk: of many libraries
        reason = one_line(error, 200)
        raise SparkError(f"{name}: no such directory here, and the Hub cannot be reached ({reason})") from error
