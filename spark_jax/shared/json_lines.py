"""JSON Lines as people bring them: byte order marks, blank lines, and lines that are none; parts of a file by bytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spark_jax.errors import SparkError, one_line
from spark_jax.shared import files


def lines(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a file that begin at bytes from `start` to before `stop`, each with its first byte's place.

    Raises:
      SparkError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()  # the rest of the line before
            while (offset := file.tell()) < stop and (line := file.readline()):
                yield offset, line
    except OSError as error:
        raise files.cannot_read(path, error) from error


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Returns the object of a line; None for a blank one.

    Args:
      line: its bytes; a byte order mark before it is ignored (of a file, or of several put together).

    Raises:
      SparkError: a line that is not UTF-8 or not a JSON object; the message says what it is, not where.
    """
    try:
        text = line.decode("utf-8-sig")
        if not text.strip():
            return None
        record = json.loads(text)
    except UnicodeDecodeError as error:
        utf_16 = line[:2] in (b"\xff\xfe", b"\xfe\xff")
        found = "UTF-16" if utf_16 else f"byte {error.start} is 0x{line[error.start]:02x}"
        raise SparkError(f"not UTF-8 text ({found})") from error
    except (ValueError, RecursionError) as error:
        raise SparkError(f"not a JSON object ({one_line(error, 200)})") from error
    if not isinstance(record, dict):
        raise SparkError(f"not a JSON object, but a {type(record).__name__}")
    return record


def dump_line(record: Any) -> bytes:
    """Returns a record as a line; halves of surrogate pairs, which are no text, are written as escapes."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
