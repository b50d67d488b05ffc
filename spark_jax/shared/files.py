"""Reads and writes files: what is written appears whole or not at all, and every failure is an error of one line.

Temporary names are short and do not contain the target's, so that names up to the file system's limit work. A link is
followed: the file that it names is replaced, and the link stays. What is no regular file (a device, a pipe) cannot be
replaced and is written through. So is a descriptor of this process, such as `STANDARD_OUTPUT`, whatever it names.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from spark_jax.errors import SparkError, one_line

STANDARD_OUTPUT = Path("/dev/stdout")  # understood by `open_atomic` on every system
_DESCRIPTOR = re.compile(r"/dev/(?:fd/(\d+)|(stdout)|(stderr))|/proc/self/fd/(\d+)")


def cannot_read(path: str | os.PathLike[str], error: Exception, expected: str = "") -> SparkError:
    """Returns the error for a file that cannot be read; `expected` says what should have been there."""
    return SparkError(f"{path}: cannot be read ({_reason(error)}){f'; expected {expected}' if expected else ''}")


def cannot_write(path: str | os.PathLike[str], error: Exception) -> SparkError:
    """Returns the error for a file or folder that cannot be written."""
    return SparkError(f"{path}: cannot be written ({_reason(error)})")


def read_bytes(path: str | os.PathLike[str], expected: str = "") -> bytes:
    """Returns the content of a file.

    Args:
      expected: what should be there, for the message.

    Raises:
      SparkError: the file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise cannot_read(path, error, expected) from error


def read_text(path: str | os.PathLike[str], expected: str = "") -> str:
    """Returns the content of a UTF-8 file; a byte order mark at its start is no part of it.

    Raises:
      SparkError: the file cannot be read or is not UTF-8.
    """
    return decode_text(read_bytes(path, expected), path)


def decode_text(content: bytes, source: str | os.PathLike[str]) -> str:
    """Returns UTF-8 text; a byte order mark at its start is no part of it.

    Args:
      content: the bytes.
      source: where they come from, for the message.

    Raises:
      SparkError: they are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SparkError(f"{source}: not UTF-8 text (byte {error.start}: {error.reason})") from error


def read_json(path: str | os.PathLike[str], expected: str = "") -> Any:
    """Returns the value that a JSON file holds.

    Raises:
      SparkError: the file cannot be read or is not JSON.
    """
    content = read_bytes(path, expected)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SparkError(f"{path}: not valid JSON ({one_line(error)})") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file; see `open_atomic`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON; see `open_atomic`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Writes a file; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name, or replaces an older one, when the block ends.

    After an error inside the block nothing has changed. A link is followed; what is no regular file is written through.

    Raises:
      SparkError: the file cannot be written.
    """
    if is_device(path):
        try:
            with open_device(path) as file:
                yield file
        except OSError as error:
            raise cannot_write(path, error) from error
        return
    target = Path(os.path.realpath(path))
    temporary = temporary_name(target)
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Makes a folder to fill, which gets the name `directory` at the end; after an error nothing is left of it.

    Raises:
      SparkError: `directory` exists and is not empty, or its parent cannot be written.
    """
    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SparkError(f"{directory}: exists already; expected a new name or an empty directory")
    folder = temporary_name(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise cannot_write(directory, error) from error
    try:
        yield folder
        os.replace(folder, directory)  # an empty directory of that name gives way
    except OSError as error:
        raise cannot_write(directory, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_directory(fresh: Path, target: Path) -> None:
    """Gives the complete folder `fresh` the name `target`; an older folder of that name goes.

    After an error the older folder is where it was. A kill in between leaves it under its own or a temporary name.

    Raises:
      SparkError: the folder cannot be replaced.
    """
    old = temporary_name(target)
    try:
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(fresh, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
    except OSError as error:
        raise cannot_write(target, error) from error
    shutil.rmtree(old, ignore_errors=True)


def temporary_name(target: Path) -> Path:
    """Returns an unused hidden name beside a file or folder, as short as names are, whatever the target's."""
    return target.with_name(f".{secrets.token_hex(6)}.tmp")


def is_device(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path names what no file can replace: a device, pipe, socket, or descriptor of this process."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing, or nothing that can be reached, which opening will tell
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_standard_output(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path names this process's standard output, where messages would mix with what is written."""
    return _descriptor(path) == 1


def _descriptor(path: str | os.PathLike[str]) -> int | None:
    """Returns the number of the descriptor that a path names; a file behind it is neither emptied nor replaced."""
    found = _DESCRIPTOR.fullmatch(Path(path).as_posix())
    if found is None:
        return None
    return 1 if found[2] else 2 if found[3] else int(found[1] or found[4])


def open_device(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens what `is_device` names for writing; a descriptor of this process stays open when the file is closed."""
    number = _descriptor(path)
    return Path(path).open("wb") if number is None else os.fdopen(os.dup(number), "wb")


def _reason(error: Exception) -> str:
    return one_line(getattr(error, "strerror", None) or error, 300)
