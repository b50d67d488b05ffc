"""VoxBox-style metadata: JSON Lines, one utterance a line (spec: Labels), audio files beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spark_jax.data import sources
from spark_jax.data.sources import DropCounter
from spark_jax.errors import SparkError
from spark_jax.shared.files import cannot_read
from spark_jax.shared.json_lines import parse_line

CORPUS_FIELDS = ("index", "wav_path")


def read_jsonl(
    path: str | Path, fields: Sequence[str], split: str | None = None, dropped: DropCounter | None = None
) -> list[dict[str, Any]]:
    """Reads the records of a JSON Lines file, in file order. Blank lines and byte order marks are no part of it.

    Args:
      path: the file.
      fields: keys that every record must have.
      split: only records whose `split` is this; None: all.
      dropped: says what becomes of a line that is no record, and counts it; None: it is an error.

    Raises:
      SparkError: no such file, a line that is not UTF-8 or not a JSON object, a missing field, or no record of the
        split.
    """
    path = Path(path)
    dropped = DropCounter() if dropped is None else dropped
    records = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                record = parse_record(line, fields, f"{path}:{number}", dropped)
                if record is not None and (split is None or record.get("split") == split):
                    records.append(record)
    except OSError as error:
        raise cannot_read(path, error) from error
    if not records:
        wanted = "" if split is None else f" with split {split!r}"
        counts = f", {sources.describe(dropped.counts)}" if dropped.counts else ""
        raise SparkError(f"{path}: no record{wanted}{counts}")
    return records


def parse_record(line: bytes, fields: Sequence[str], where: object, dropped: DropCounter) -> dict[str, Any] | None:
    """Parses a line of JSON Lines; None for a blank one, and for one that is no record and that `dropped` skips.

    Args:
      line: its bytes; a byte order mark before it is ignored (of a file, or of several put together).
      fields: keys that it must have.
      where: names the line in errors; made a text only there.
      dropped: what becomes of a line that is no record.

    Raises:
      SparkError: a line that is not UTF-8 or not a JSON object with these fields.
    """
    try:
        record = parse_line(line)
    except SparkError as error:
        dropped.fault("unreadable", SparkError(f"{where}: {error}"))
        return None
    if record is None:
        return None
    if missing := [field for field in fields if field not in record]:
        dropped.fault("missing fields", SparkError(f"{where}: field {missing[0]!r} is missing"))
        return None
    return record


def read_corpus(
    corpus: str | Path, split: str | None, fields: Sequence[str] = (), dropped: DropCounter | None = None
) -> list[dict[str, Any]]:
    """Reads the records of `corpus/metadata.jsonl`; `wav_path` becomes a path from the working directory.

    Raises:
      SparkError: as `read_jsonl`; or an index or path that is none.
    """
    path = Path(corpus) / "metadata.jsonl"
    dropped = DropCounter() if dropped is None else dropped
    records = []
    for record in read_jsonl(path, [*CORPUS_FIELDS, *fields], split, dropped):
        if fault := corpus_fault(record):
            dropped.fault("unusable", SparkError(f"{path}: utterance {record['index']!r}: {fault}"))
        else:
            records.append(record | {"wav_path": str(Path(corpus) / record["wav_path"])})
    return records


def corpus_fault(record: dict[str, Any]) -> str:
    """Returns what keeps a record with `CORPUS_FIELDS` from being an utterance of a corpus, or ""."""
    index, path = record["index"], record["wav_path"]
    if isinstance(index, bool) or not isinstance(index, int | float | str):
        return f"index is {index!r}, expected a number or a text of its own"
    if not isinstance(path, str) or not path or "\0" in path:
        return f"wav_path is {path!r}, expected the path of an audio file"
    return ""
