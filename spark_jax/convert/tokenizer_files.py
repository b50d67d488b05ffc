"""The tokenizer of an official directory: its files, and whether it fits the model."""

import json
import math
from pathlib import Path

from spark_jax.config import BiCodecConfig, Qwen2Config
from spark_jax.convert.causes import refuse_pointer
from spark_jax.errors import SparkError, one_line
from spark_jax.shared.files import read_bytes, write_bytes
from spark_jax.text.tokenizer import SparkTokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def check_tokenizer(folder: Path, llm: Qwen2Config, codec: BiCodecConfig | None) -> SparkTokenizer:
    """Loads the tokenizer of a folder, once it is known to be whole and to fit the embedding and the codec.

    Args:
      folder: with its files.
      llm: the decoder's sizes.
      codec: the codec's; None: any fits.

    Raises:
      SparkError: it does not fit, is incomplete, or is none.
    """
    for name in TOKENIZER_FILES:
        refuse_pointer(folder / name)
    tokenizer = SparkTokenizer.load(folder)
    tokenizer.check_complete()
    if codec is not None:
        counts = {
            "semantic": (len(tokenizer.semantic_ids), codec.quantizer.codebook_size),
            "global": (len(tokenizer.global_ids), math.prod(codec.speaker_encoder.fsq_levels)),
        }
        for kind, (found, expected) in counts.items():
            if found != expected:
                raise SparkError(f"{folder}: the tokenizer has {found} {kind} tokens, the codec has {expected} codes")
    if tokenizer.vocab_size > llm.vocab_size:
        raise SparkError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the LLM's vocab_size is {llm.vocab_size}"
        )
    return tokenizer


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copies the files of a tokenizer, which must be text, and of JSON mappings, at least.

    Raises:
      SparkError: a file is not what its name says, or cannot be read or written.
    """
    destination.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        path = source / name
        if path.is_file():
            content = read_bytes(path)
            try:
                text = content.decode()
                if path.suffix == ".json" and not isinstance(json.loads(text), dict):
                    raise ValueError("no mapping")
            except (ValueError, RecursionError) as error:
                raise SparkError(f"{path}: malformed ({one_line(error)})") from error
            write_bytes(destination / name, content)
