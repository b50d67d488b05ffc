"""The tokenizer of text and speech: byte-level BPE of Qwen2.5 (or plain bytes) plus the Spark tokens.

It needs only the `tokenizers` package, because importing transformers takes 1.5 s. transformers' AutoTokenizer loads
the files that it writes. Ids are always read from the tokenizer, never computed.
"""

import base64
import itertools
import math
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError, one_line
from spark_jax.shared import files

# Qwen2.5's added tokens in the order of their ids (from 151643 on); those of the second tuple count as text.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEXT_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
TASKS = ("vc", "tts", "asr", "s2s", "t2s", "cap", "understand", "controllable_tts", "prompt_tts", "edit")
SECTIONS = ("content", "style_label", "style_prompt", "acoustic_token", "global_token", "semantic_token")

# How Qwen2 splits text into the pieces on which BPE works.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def spark_tokens(semantic_codes: int = 8192, global_codes: int = 4096) -> list[str]:
    """Returns the tokens that Spark-TTS appends to the text vocabulary, in the order of their ids."""
    counts = (
        ("bicodec_global", global_codes),
        ("bicodec_semantic", semantic_codes),
        ("pitch_value", 1001),
        ("pitch_var_value", 11),
        ("pitch_label", 5),
        ("pitch_var_label", 5),
        ("speed_value", 11),
        ("speed_label", 5),
        ("loudness_value", 31),
        ("loudness_label", 5),
        ("age", 5),
        ("gender", 3),
        ("emotion", 101),
    )
    numbered = [f"<|{name}_{index}|>" for name, count in counts for index in range(count)]
    tasks = [f"<|task_{name}|>" for name in TASKS]
    return numbered + tasks + [f"<|{edge}_{name}|>" for edge in ("start", "end") for name in SECTIONS]


class SparkTokenizer:
    """Encodes text as token ids, and holds the ids of all speech tokens as arrays indexed by code.

    `semantic_ids[c]` is the token id of semantic code c; likewise `global_ids`, `pitch_value_ids`, `speed_value_ids`,
    `pitch_label_ids`, `speed_label_ids`, and `gender_ids`. `semantic_codes[id]` and `global_codes[id]` are the inverse,
    with -1 for every other token.
    """

    def __init__(self, tokenizer: Tokenizer, source: str = "tokenizer"):
        """Wraps a tokenizer that has the Spark tokens.

        Args:
          tokenizer: the tokenizer.
          source: its name in error messages.

        Raises:
          SparkError: a Spark token is missing (the message names the first), or the ids are not 0, 1, 2, …
        """
        self._tokenizer = tokenizer
        self._source = source
        self._added = {added.content: index for index, added in tokenizer.get_added_tokens_decoder().items()}
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        ids = np.sort(np.fromiter(tokenizer.get_vocab(with_added_tokens=True).values(), np.int64))
        if (wrong := np.flatnonzero(ids != np.arange(len(ids)))).size:
            raise SparkError(f"{source}: token id {wrong[0]} is missing or taken twice; expected 0 to {len(ids) - 1}")
        self.semantic_ids = self._numbered("bicodec_semantic")
        self.global_ids = self._numbered("bicodec_global")
        self.pitch_value_ids = self._numbered("pitch_value", 1001)
        self.speed_value_ids = self._numbered("speed_value", 11)
        self.pitch_label_ids = self._numbered("pitch_label", 5)
        self.speed_label_ids = self._numbered("speed_label", 5)
        self.gender_ids = self._numbered("gender", 2)
        for name in ("<|im_end|>", "<|task_tts|>", "<|task_controllable_tts|>"):
            self.id(name)
        for section in ("content", "style_label", "acoustic_token", "global_token", "semantic_token"):
            self.id(f"<|start_{section}|>")
            self.id(f"<|end_{section}|>")

    @classmethod
    def load(cls, directory: str | Path) -> "SparkTokenizer":
        """Reads the `tokenizer.json` of a tokenizer directory (this library's, or `LLM` of the release).

        Raises:
          SparkError: the file cannot be read, is not a tokenizer, or lacks a Spark token.
        """
        path = Path(directory) / "tokenizer.json"
        return cls(_read_tokenizer(path), str(path))

    def check_complete(self) -> None:
        """Checks that a tokenizer from elsewhere also has the parts that this library does not use itself.

        Raises:
          SparkError: a Spark token, the token of a byte, or a step between text and tokens is missing.
        """
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        for byte, letter in enumerate(_byte_letters()):
            if letter not in vocabulary:
                raise SparkError(f"{self._source}: no token of byte {byte}; expected byte-level BPE")
        for step in ("normalizer", "pre_tokenizer", "decoder"):
            if getattr(self._tokenizer, step) is None:
                raise SparkError(f"{self._source}: {step} is missing; expected Qwen's")
        for token in spark_tokens(len(self.semantic_ids), len(self.global_ids)):
            self.id(token)

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.json`, and beside it the `tokenizer_config.json` that AutoTokenizer needs.

        Raises:
          SparkError: a file cannot be written.
        """
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
        }
        Path(directory).mkdir(parents=True, exist_ok=True)
        files.write_text(Path(directory) / "tokenizer.json", self._tokenizer.to_str(pretty=False))
        files.write_json(Path(directory) / "tokenizer_config.json", settings)

    def id(self, token: str) -> int:
        """Returns the id of an added token, such as "<|im_end|>".

        Raises:
          SparkError: the tokenizer has no such token.
        """
        if token not in self._added:
            raise SparkError(f"{self._source}: token {token} is missing; expected a Spark-TTS tokenizer")
        return self._added[token]

    def encode(self, prompt: str) -> list[int]:
        """Returns the ids of a whole prompt, in which written control tokens become their ids."""
        return self._tokenizer.encode(prompt, add_special_tokens=False).ids

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of a user's text, in which text that looks like a control token stays ordinary text.

        For text without such look-alikes, `encode` gives the same ids between two control tokens.
        """
        parts = self._tokenizer
        if parts.normalizer is not None:
            text = parts.normalizer.normalize_str(text)
        pieces = parts.pre_tokenizer.pre_tokenize_str(text)
        return [token.id for piece, _ in pieces for token in parts.model.tokenize(piece)]

    def decode(self, ids: Iterable[int] | Int[np.ndarray, "_"]) -> str:
        """Returns the text of ids, with control tokens written out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def semantic_codes(self) -> Int[np.ndarray, " vocab"]:
        """The semantic code of each token id, -1 for other tokens."""
        return self._inverse(self.semantic_ids)

    @cached_property
    def global_codes(self) -> Int[np.ndarray, " vocab"]:
        """The global code of each token id, -1 for other tokens."""
        return self._inverse(self.global_ids)

    def _numbered(self, name: str, count: int | None = None) -> Int[np.ndarray, " count"]:
        """Returns the ids of <|name_0|>, <|name_1|>, …: the first `count`, or all that the tokenizer has."""
        if count is None:
            count = sum(re.fullmatch(rf"<\|{name}_\d+\|>", token) is not None for token in self._added)
        return np.array([self.id(f"<|{name}_{index}|>") for index in range(max(count, 1))], np.int32)

    def _inverse(self, ids: Int[np.ndarray, " codes"]) -> Int[np.ndarray, " vocab"]:
        codes = np.full(self.vocab_size, -1, np.int32)
        codes[ids] = np.arange(len(ids))
        return codes


def build_tokenizer(base: str | Path = "bytes", semantic_codes: int = 8192, global_codes: int = 4096) -> SparkTokenizer:
    """Makes a tokenizer from a text vocabulary and the Spark tokens.

    Args:
      base: a tiktoken ranks file (Qwen's `qwen.tiktoken` gives the ids of the release), or "bytes" for small models:
        the 256 bytes without merges, and only the first three of Qwen's added tokens.
      semantic_codes: size of BiCodec's semantic codebook.
      global_codes: size of BiCodec's global codebook.

    Raises:
      SparkError: the ranks file cannot be read or does not hold tiktoken ranks.
    """
    tokenizer = _text_tokenizer(base)
    _add_spark_tokens(tokenizer, semantic_codes, global_codes)
    return SparkTokenizer(tokenizer, str(base))


def open_tokenizer(source: str | Path, config: SparkConfig) -> SparkTokenizer:
    """Reads a tokenizer directory, or makes a tokenizer from "bytes" or a ranks file for the codes of a system.

    Raises:
      SparkError: there is no such tokenizer.
    """
    if Path(source).is_dir():
        return SparkTokenizer.load(source)
    codec = config.bicodec
    return build_tokenizer(source, codec.quantizer.codebook_size, math.prod(codec.speaker_encoder.fsq_levels))


def extend_tokenizer(
    directory: str | Path, semantic_codes: int = 8192, global_codes: int = 4096
) -> tuple[SparkTokenizer, int]:
    """Appends the Spark tokens to a text tokenizer; returns it with the number of tokens that it had before.

    Args:
      directory: directory with the `tokenizer.json` of a Qwen model.
      semantic_codes: size of BiCodec's semantic codebook.
      global_codes: size of BiCodec's global codebook.

    Raises:
      SparkError: the file cannot be read, is not a tokenizer, or has Spark tokens already.
    """
    path = Path(directory) / "tokenizer.json"
    tokenizer = _read_tokenizer(path)
    known = tokenizer.get_vocab_size(with_added_tokens=True)
    wanted = spark_tokens(semantic_codes, global_codes)
    if present := [token for token in wanted if tokenizer.token_to_id(token) is not None]:
        raise SparkError(f"{path}: has {present[0]} already; expected the tokenizer of a base model")
    _add_spark_tokens(tokenizer, semantic_codes, global_codes)
    return SparkTokenizer(tokenizer, str(path)), known


def _add_spark_tokens(tokenizer: Tokenizer, semantic_codes: int, global_codes: int) -> None:
    tokens = spark_tokens(semantic_codes, global_codes)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])


def _text_tokenizer(base: str | Path) -> Tokenizer:
    """Returns the tokenizer of `build_tokenizer` before the Spark tokens are added."""
    letters = _byte_letters()
    if base == "bytes":
        vocabulary, merges = {letter: byte for byte, letter in enumerate(letters)}, []
        special, ordinary = SPECIAL_TOKENS[:3], ()
    else:
        ranks = _read_ranks(Path(base))
        vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
        pairs = _recover_merges(ranks)
        merges = [tuple("".join(letters[byte] for byte in half) for half in pair) for pair in pairs]
        special, ordinary = SPECIAL_TOKENS, TEXT_TOKENS
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Matched before NFC: a combining mark at the start of a text must not merge with the token before it.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ordinary])
    return tokenizer


def _read_tokenizer(path: Path) -> Tokenizer:
    text = files.read_text(path, "a tokenizer of tokenizers or transformers")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers package raises bare Exception
        raise SparkError(f"{path}: not a tokenizer: {one_line(error)}") from error


def _byte_letters() -> list[str]:
    """Returns the letter that stands for each byte in byte-level BPE (GPT-2): U+0100 and up for unprintable ones."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Returns the rank of each token in a tiktoken file, whose lines hold base64 and a number."""
    content = files.read_bytes(path, "tiktoken ranks")
    try:
        lines = content.decode("ascii").split("\n")
        pairs = (line.split() for line in lines if line)
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise SparkError(f"{path}: not tiktoken ranks (lines of base64 and number): {error}") from error


def _recover_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Returns the pairs of which longer tokens were merged, by rank: BPE on a token's bytes with lower ranks only."""
    merges = []
    for token, limit in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[index : index + 1] for index in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, limit) for left, right in itertools.pairwise(parts)]
            best = min(pairs)
            if best >= limit:
                break
            index = pairs.index(best)
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges
