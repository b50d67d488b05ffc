"""Voice files and token files: what a speaker sounds like, and what an utterance says, as JSON.

A token file is `{"global_ids": [...], "semantic_ids": [...], "sample_rate": 16000}`. A voice file is the same
with `"format": "spark-jax-voice"`, `"version": 1` and `"transcript"` (a string, or null when it is not
known):

    {"format": "spark-jax-voice", "version": 1, "sample_rate": 16000, "transcript": "Hello there.",
     "global_ids": [12, 873, ...], "semantic_ids": [5012, 77, ...]}

`global_ids` are the speaker's tokens (`token_num` of the model's configuration, 32 in the release);
`semantic_ids` are the reference's own speech, one id for `latent_hop_length` samples; in a voice file without
a transcript nothing needs them, and they may be `[]` (older files have them, and are read too). Ids mean something
only to the codec that made them.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.shared.files import read_json, write_text
from spark_jax.text.reading import check_text

FORMAT = "spark-jax-voice"
VERSION = 1
_TOKEN_KEYS = ("global_ids", "semantic_ids", "sample_rate")
_VOICE_KEYS = ("format", "version", "transcript", *_TOKEN_KEYS)


@dataclasses.dataclass(frozen=True, eq=False)
class Voice:
    """A speaker to clone: global tokens, and the reference's speech with its transcript where it is known."""

    global_ids: Int[np.ndarray, " tokens"]
    semantic_ids: Int[np.ndarray, " time"]  # without a transcript they may be empty: nothing needs them then
    transcript: str | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: SparkConfig) -> "Voice":
        """Reads and checks a voice file.

        Raises:
          SparkError: the file cannot be read, is not a voice file of this version, or does not fit the model.
        """
        content = _read_object(path)
        if content.get("format") != FORMAT:
            raise SparkError(f'{path}: not a voice file: expected "format": "{FORMAT}"')
        version = content.get("version")
        if version != VERSION:
            raise SparkError(f"{path}: voice file version is {version!r}, expected {VERSION}")
        _check_keys(content, _VOICE_KEYS, path)
        transcript = content["transcript"]
        if not (transcript is None or (isinstance(transcript, str) and transcript.strip())):
            raise SparkError(f"{path}: transcript is {transcript!r}, expected text or null")
        if transcript is not None:
            check_text(f"{path}: transcript", transcript, "what the reference says")
        return cls(*_token_ids(content, config, path, speech=transcript is not None), transcript)

    def save(self, path: str | os.PathLike[str], sample_rate: int) -> None:
        """Writes a voice file, at once or not at all.

        Args:
          path: the file.
          sample_rate: the codec's, in Hz.

        Raises:
          SparkError: the file cannot be written.
        """
        content = {"format": FORMAT, "version": VERSION, "transcript": self.transcript}
        _write_object(path, content | _token_content(self.global_ids, self.semantic_ids, sample_rate))


def load_tokens(
    path: str | os.PathLike[str], config: SparkConfig
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " time"]]:
    """Reads and checks a token file: global ids, semantic ids.

    Raises:
      SparkError: the file cannot be read, a key is missing, unknown or of another type, or does not fit the
        model.
    """
    content = _read_object(path)
    _check_keys(content, _TOKEN_KEYS, path)
    return _token_ids(content, config, path)


def save_tokens(
    path: str | os.PathLike[str],
    global_ids: Int[np.ndarray, " tokens"],
    semantic_ids: Int[np.ndarray, " time"],
    sample_rate: int,
) -> None:
    """Writes a token file, at once or not at all.

    Raises:
      SparkError: the file cannot be written.
    """
    _write_object(path, _token_content(global_ids, semantic_ids, sample_rate))


def check_ids(
    global_ids: Any, semantic_ids: Any, config: SparkConfig, source: str | None = None, speech: bool = True
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " time"]]:
    """Returns the ids as int32 arrays, once they are known to fit the codec.

    Args:
      source: where they come from, for the message.
      speech: there must be semantic ids; False: there may be none.

    Raises:
      SparkError: not one-dimensional integers, another number of global ids than the model's, no semantic
        ids, or an id outside its codebook.
    """
    speaker = config.bicodec.speaker_encoder
    global_ids = _checked("global_ids", global_ids, math.prod(speaker.fsq_levels), source)
    if len(global_ids) != speaker.token_num:
        raise _fault(source, f"global_ids has {len(global_ids)} ids, expected {speaker.token_num}")
    if not speech and np.size(semantic_ids) == 0:
        return global_ids, np.zeros(0, np.int32)
    semantic_ids = _checked("semantic_ids", semantic_ids, config.bicodec.quantizer.codebook_size, source)
    return global_ids, semantic_ids


def _checked(key: str, values: Any, size: int, source: str | None) -> Int[np.ndarray, " ids"]:
    try:
        ids = np.asarray(values)
    except ValueError:  # lists of different lengths
        ids = np.empty((0, 0))
    if ids.size == 0 and ids.ndim == 1:
        raise _fault(source, f"{key} is empty")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise _fault(source, f"{key} must be a flat list of integers")
    outside = np.flatnonzero((ids < 0) | (ids >= size))
    if len(outside):
        raise _fault(source, f"{key}[{outside[0]}] is {ids[outside[0]]}, expected 0 to {size - 1}")
    return ids.astype(np.int32)


def _fault(source: str | os.PathLike[str] | None, message: str) -> SparkError:
    return SparkError(f"{source}: {message}" if source is not None else message)


def _token_ids(
    content: Mapping[str, Any], config: SparkConfig, path: str | os.PathLike[str], speech: bool = True
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " time"]]:
    sample_rate = content["sample_rate"]
    if sample_rate != config.sample_rate:
        raise SparkError(f"{path}: sample_rate is {sample_rate!r}, the model's is {config.sample_rate}")
    for key in ("global_ids", "semantic_ids"):
        if not isinstance(content[key], list):
            raise SparkError(f"{path}: {key} must be a flat list of integers")
    return check_ids(content["global_ids"], content["semantic_ids"], config, os.fspath(path), speech)


def _check_keys(content: Mapping[str, Any], expected: tuple[str, ...], path: str | os.PathLike[str]) -> None:
    missing = [key for key in expected if key not in content]
    if missing:
        raise SparkError(f"{path}: key {', '.join(missing)} is missing")
    unknown = [key for key in content if key not in expected]
    if unknown:
        raise SparkError(f"{path}: unknown key {', '.join(unknown)}, expected {', '.join(expected)}")


def _read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise SparkError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _token_content(global_ids: np.ndarray, semantic_ids: np.ndarray, sample_rate: int) -> dict[str, Any]:
    return {
        "sample_rate": sample_rate,
        "global_ids": np.asarray(global_ids).tolist(),
        "semantic_ids": np.asarray(semantic_ids).tolist(),
    }


def _write_object(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
