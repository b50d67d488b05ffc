"""What a token record must hold, so that nothing is learned that the grammar of completions never makes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.text.tokenizer import SparkTokenizer


@dataclasses.dataclass(frozen=True)
class CodeSizes:
    """The numbers of a codec that its ids follow.

    Attributes:
      semantic_codes, global_codes: sizes of the codebooks.
      global_tokens: global ids of an utterance; None: any number.
    """

    semantic_codes: int
    global_codes: int
    global_tokens: int | None

    @classmethod
    def of_codec(cls, config: SparkConfig) -> "CodeSizes":
        """Returns those of a model's codec."""
        codec = config.bicodec
        codes = math.prod(codec.speaker_encoder.fsq_levels)
        return cls(codec.quantizer.codebook_size, codes, codec.speaker_encoder.token_num)

    @classmethod
    def of_tokenizer(cls, tokenizer: SparkTokenizer, global_tokens: int | None = None) -> "CodeSizes":
        """Returns those that a tokenizer has tokens for."""
        return cls(len(tokenizer.semantic_ids), len(tokenizer.global_ids), global_tokens)


def check_text(record: Mapping[str, Any]) -> None:
    """Refuses a record whose text is none or blank.

    Raises:
      SparkError: naming what stands there.
    """
    text = record["text"]
    if not isinstance(text, str) or not text.strip():
        raise SparkError(f"text is {text!r}, expected something to say")


def check_ids(record: Mapping[str, Any], sizes: CodeSizes) -> None:
    """Refuses a record whose ids no utterance of the codec has.

    Raises:
      SparkError: ids that are no list of integers, out of the codebook's range, another number of global ids than the
        codec makes, or no semantic id; the message names the key.
    """
    for name, kind, codes in (
        ("global_ids", "global id", sizes.global_codes),
        ("semantic_ids", "semantic id", sizes.semantic_codes),
    ):
        ids = _integers(name, record[name])
        wrong = np.flatnonzero((ids < 0) | (ids >= codes))
        if wrong.size:
            place = int(wrong[0])
            raise SparkError(f"{kind} {ids[place]} is out of range, expected 0 to {codes - 1} ({name}[{place}])")
        if name == "global_ids" and sizes.global_tokens not in (None, len(ids)):
            raise SparkError(f"global_ids has {len(ids)} ids, expected {sizes.global_tokens}, as the model")
        if not len(ids):
            raise SparkError(f"{name} is empty, expected at least one id")


def _integers(name: str, values: Any) -> np.ndarray:
    expected = "expected a list of integers"
    if isinstance(values, np.ndarray):
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
            raise SparkError(f"{name} is of shape {values.shape}, type {values.dtype}; {expected}")
        return values.astype(np.int64)
    if not isinstance(values, list | tuple):
        raise SparkError(f"{name} is {values!r:.80}; {expected}")
    for place, value in enumerate(values):
        if type(value) is not int or abs(value) >= 1 << 62:
            raise SparkError(f"{name}[{place}] is {value!r:.80}; {expected}")
    return np.array(values, np.int64)
