"""VoxBox-style metadata: JSON Lines, one utterance a line (spec: Labels), audio files beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from spark_jax.errors import SparkError


def read_jsonl(path: str | Path, fields: Sequence[str], split: str | None = None) -> list[dict[str, Any]]:
    """The records of a JSON Lines file, in file order.

    Args:
      path: the file.
      fields: keys that every record must have.
      split: only records whose `split` is this; None: all.

    Raises:
      SparkError: no such file, a line that is not a JSON object, a missing field, or no record of the split.
    """
    path = Path(path)
    records = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    missing = [field for field in fields if field not in record]
                except (json.JSONDecodeError, TypeError) as error:
                    raise SparkError(f"{path}:{number}: not a JSON object ({error})") from error
                if missing:
                    raise SparkError(f"{path}:{number}: field {missing[0]!r} is missing")
                if split is None or record.get("split") == split:
                    records.append(record)
    except (OSError, UnicodeDecodeError) as error:
        raise SparkError(f"{path}: cannot be read ({error})") from error
    if not records:
        raise SparkError(f"{path}: no record" + ("" if split is None else f" with split {split!r}"))
    return records


def read_corpus(corpus: str | Path, split: str | None, fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Records of `corpus/metadata.jsonl`; `wav_path` is made absolute."""
    records = read_jsonl(Path(corpus) / "metadata.jsonl", ["index", "wav_path", "duration", *fields], split)
    return [record | {"wav_path": str(Path(corpus) / record["wav_path"])} for record in records]


def read_audio(path: str, sample_rate: int) -> Float[np.ndarray, " samples"]:
    """First channel of a corpus file as float32.

    Raises:
      SparkError: not audio, or of another sample rate (a corpus is stored at the model's).
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise SparkError(f"{path}: cannot be read as audio ({error})") from error
    if rate != sample_rate:
        raise SparkError(f"{path}: sample rate {rate}, expected {sample_rate}")
    return samples[:, 0]
