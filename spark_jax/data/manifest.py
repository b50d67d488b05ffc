"""VoxBox-style metadata: JSON Lines, one utterance a line (spec: Labels), audio files beside it."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from spark_jax.data.sources import DropCounter
from spark_jax.errors import SparkError
from spark_jax.shared.files import cannot_read

CORPUS_FIELDS = ("index", "wav_path", "duration")


def read_jsonl(
    path: str | Path, fields: Sequence[str], split: str | None = None, dropped: DropCounter | None = None
) -> list[dict[str, Any]]:
    """Reads the records of a JSON Lines file, in file order.

    Args:
      path: the file.
      fields: keys that every record must have.
      split: only records whose `split` is this; None: all.
      dropped: says what becomes of a line that is no record, and counts it; None: it is an error.

    Raises:
      SparkError: no such file, a line that is not a JSON object, a missing field, or no record of the split.
    """
    path = Path(path)
    dropped = DropCounter() if dropped is None else dropped
    records = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                record = parse_record(line, fields, f"{path}:{number}", dropped)
                if record is not None and (split is None or record.get("split") == split):
                    records.append(record)
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error) from error
    if not records:
        raise SparkError(f"{path}: no record" + ("" if split is None else f" with split {split!r}"))
    return records


def parse_record(line: str | bytes, fields: Sequence[str], where: str, dropped: DropCounter) -> dict[str, Any] | None:
    """Parses a line of JSON Lines; None for one that is no record and that `dropped` skips.

    Raises:
      SparkError: a line that is not a JSON object with these fields.
    """
    try:
        record = json.loads(line)
        missing = [field for field in fields if field not in record]
    except (ValueError, TypeError, RecursionError) as error:
        dropped.fault("unreadable", SparkError(f"{where}: not a JSON object ({error})"))
        return None
    if missing or not isinstance(record, dict):
        dropped.fault("missing fields", SparkError(f"{where}: field {missing[0]!r} is missing"))
        return None
    return record


def read_corpus(
    corpus: str | Path, split: str | None, fields: Sequence[str] = (), dropped: DropCounter | None = None
) -> list[dict[str, Any]]:
    """Reads the records of `corpus/metadata.jsonl`; `wav_path` becomes a path from the working directory.

    Raises:
      SparkError: as `read_jsonl`.
    """
    records = read_jsonl(Path(corpus) / "metadata.jsonl", [*CORPUS_FIELDS, *fields], split, dropped)
    return [record | {"wav_path": str(Path(corpus) / record["wav_path"])} for record in records]


def read_audio(path: str | io.BytesIO, sample_rate: int, name: str | None = None) -> Float[np.ndarray, " samples"]:
    """Reads the first channel of a corpus file as float32.

    Args:
      path: of the file, or its open content, which `name` names in errors.

    Raises:
      SparkError: not audio, or of another sample rate (a corpus is stored at the model's).
    """
    name = str(path) if name is None else name
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise SparkError(f"{name}: cannot be read as audio ({error})") from error
    if rate != sample_rate:
        raise SparkError(f"{name}: sample rate {rate}, expected {sample_rate}")
    if not len(samples):
        raise SparkError(f"{name}: no sample")
    return samples[:, 0]
