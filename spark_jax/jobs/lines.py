"""A line of a batch's input: its id, what it asks for, and the name of its file; or what is wrong with it.

    {"id": "greeting-1", "text": "Good morning.", "gender": "female", "seed": 7}

`id` names the job: a text, or a whole number. The other keys are the fields of `Request`. Paths are relative to the
folder of the input. A job without a seed has that of its id, so that its sound depends on nothing but itself.
"""

import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import get_args, get_type_hints

from spark_jax.errors import SparkError, one_line
from spark_jax.inference.request import Request
from spark_jax.shared.json_lines import parse_line

FIELDS = tuple(field.name for field in dataclasses.fields(Request))
_PATHS = ("voice", "reference")
# The types that a field may have, as JSON has them.
_KINDS = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(Request).items()}
_WORDS = {str: "a text", bool: "true or false", float: "a number", int: "a whole number"}
_LONGEST = 100  # characters of an id that a file's name has
_ODD = re.compile(r"[^\w.+-]+")
# Names of devices, which no file on Windows can have, with or without an extension.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class BadJobError(SparkError):
    """A line that is no job.

    Attributes:
      id: the job's, where the line has one.
    """

    def __init__(self, message: str, id: str | None = None):
        super().__init__(message)
        self.id = id


@dataclasses.dataclass(frozen=True)
class Job:
    """What a line asks for.

    Attributes:
      line: its number, from 1.
      id: of the job.
      request: the rest.
    """

    line: int
    id: str
    request: Request


def read_job(line: bytes, number: int, folder: Path) -> Job | None:
    """Returns the job of a line; None: it is blank.

    Args:
      line: its bytes.
      number: counts the lines, from 1.
      folder: where relative paths begin.

    Raises:
      BadJobError: it is no JSON object, a key is missing, unknown or out of range.
    """
    id = None
    try:
        record = parse_line(line)
        if record is None:
            return None
        id = _job_id(record)
        fields = {name: value for name, value in record.items() if name != "id"}
        if "text" not in fields:
            raise SparkError("text is missing")
        if unknown := [name for name in fields if name not in FIELDS]:
            raise SparkError(f"unknown key {', '.join(map(repr, unknown))}, expected id, {', '.join(FIELDS)}")
        if fields.get("seed") is None:
            fields["seed"] = seed_of(id)
        for name, value in fields.items():
            _check_type(name, value)
        for name in _PATHS:
            if fields.get(name) is not None:
                fields[name] = _path(name, fields[name], folder)
        return Job(number, id, Request(**fields))
    except SparkError as error:
        raise BadJobError(one_line(error), id) from error


def read_id(line: bytes) -> str | None:
    """Returns the id of a line; None where it has none that can be used."""
    try:
        record = parse_line(line)
        return None if record is None else _job_id(record)
    except SparkError:
        return None


def seed_of(id: str) -> int:
    """Returns the seed of a job that names none: the first four bytes of the SHA-256 of its id, the highest first."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:4])


def file_stem(id: str) -> str:
    """Returns a file name, without extension, that every file system takes and that no other id has.

    An id of letters, digits, "_", "-", "+" and "." is its own name; of another one the rest is replaced, and a hash
    follows. Names that differ in their case alone are not told apart.
    """
    name = _ODD.sub("_", unicodedata.normalize("NFC", id)).lstrip(".-")[:_LONGEST].rstrip(".")
    if name != id or not name or len(name.encode()) > 2 * _LONGEST or _DEVICES.fullmatch(name):
        while len(name.encode()) > 2 * _LONGEST:
            name = name[:-1]
        return hashed(name, id)
    return name


def hashed(stem: str, id: str) -> str:
    """Returns a name with a part of the id's hash."""
    return f"{stem}-{hashlib.sha256(id.encode()).hexdigest()[:12]}".lstrip("-")


def _job_id(record: dict) -> str:
    if "id" not in record:
        raise SparkError("id is missing")
    id = record["id"]
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not id.strip():
        raise SparkError(f"id is {id!r}, expected a text or a whole number")
    if any("\ud800" <= character <= "\udfff" for character in id):
        raise SparkError(f"id is {id!r}, expected Unicode text")
    return id


def _check_type(name: str, value: object) -> None:
    kinds = _KINDS[name]
    if type(value) in kinds or (type(value) is int and float in kinds):
        return
    expected = next(_WORDS[kind] for kind in kinds if kind in _WORDS)
    raise SparkError(f"{name} is {one_line(json.dumps(value), 100)}, expected {expected}")


def _path(name: str, value: str, folder: Path) -> str:
    if not value or "\0" in value:
        raise SparkError(f"{name} is {value!r}, expected the path of a file")
    return os.path.join(folder, value)
