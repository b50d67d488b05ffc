"""What the files of a model directory should be: their sizes, and the hashes of a finished one.

`manifest.json` lists every other file with its size and SHA-256. It is written last. `check` compares the manifest,
byte for byte, with the one that the directory would get now: no change to any file, the manifest included, can go
unseen.

A run writes its parts anew at every evaluation, where hashing gigabytes would stop the training. It has no manifest:
each part has a file of its own, `params/<part>/sizes.json`, which comes and goes with the part. Truncated and missing
files are still told; `check` answers that there are no hashes. Directories of before the manifest have
`params/files.json` with the sizes of all parameter files.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spark_jax.errors import SparkError, one_line
from spark_jax.shared.files import cannot_read, read_bytes, read_json, write_json, write_text

MANIFEST = "manifest.json"
SIZES = "sizes.json"
_OLDER_SIZES = "files.json"


def hash_files(folder: str | Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 (hexadecimal) of files by their names relative to a folder; several are read at a time.

    Raises:
      SparkError: a file cannot be read.
    """
    names = list(names)

    def digest(name: str) -> str:
        path = Path(folder) / name
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise cannot_read(path, error) from error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter free
        return dict(zip(names, pool.map(digest, names), strict=True))


def write_manifest(folder: str | Path) -> None:
    """Writes `manifest.json`; nothing in the folder may change afterwards.

    Raises:
      SparkError: the folder holds something else than plain files and folders, or a file cannot be read.
    """
    if problems := _not_plain(Path(folder)):
        raise SparkError("; ".join(problems))
    write_text(Path(folder) / MANIFEST, _text(_entries(Path(folder))))


def check(directory: str | Path) -> int:
    """Compares every file with the manifest, and returns their number.

    Raises:
      SparkError: there is no manifest; or a file is changed, truncated, missing or extra: all are named.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if directory.is_dir() and not path.exists():
        run = ", a training writes its parts too often" if list(directory.glob(f"params/*/{SIZES}")) else ""
        raise SparkError(f"{path}: no such file; the model was written without hashes and cannot be checked{run}")
    expected = read_manifest(directory)
    problems = _not_plain(directory)
    found = _entries(directory)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            problems.append(f"{directory / name} is missing")
        elif name not in expected:
            problems.append(f"{directory / name} is extra")
        elif found[name]["bytes"] != expected[name]["bytes"]:
            problems.append(f"{directory / name} has {found[name]['bytes']} bytes, expected {expected[name]['bytes']}")
        elif found[name] != expected[name]:
            problems.append(f"{directory / name} is changed: its sha256 is not the manifest's")
    if not problems and read_bytes(path) != _text(found).encode():
        problems.append(f"{path} is changed: it says the same in another form")
    if problems:
        raise SparkError(f"{len(problems)} files are not as they were written: {'; '.join(problems)}")
    return len(found)


def read_manifest(directory: str | Path) -> dict[str, dict[str, Any]]:
    """Returns {"bytes": size, "sha256": hexadecimal} of every file, by its name relative to the directory.

    Raises:
      SparkError: `manifest.json` is missing or malformed.
    """
    path = Path(directory) / MANIFEST
    content = read_json(path)
    try:
        files = content["files"]
        return {name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error)
        raise SparkError(f"{path}: not a list of files with bytes and sha256 ({reason})") from error


def write_part_sizes(folder: Path) -> None:
    """Writes the sizes of a part's files beside them; nothing in the folder may change afterwards.

    Raises:
      SparkError: the file cannot be written.
    """
    write_json(folder / SIZES, file_sizes(folder))


def check_part_sizes(folder: Path) -> None:
    """Checks that the files of a part have the sizes they were written with, where these are recorded beside them.

    Raises:
      SparkError: files are truncated or missing; all are named.
    """
    if (folder / SIZES).exists():
        _check(folder, _read_sizes(folder / SIZES))


def check_sizes(directory: Path) -> None:
    """Checks that every file of `params` has the size it was written with.

    Orbax answers a short file with pages of log, and sometimes as if its tensors had never been there.

    Raises:
      SparkError: files are truncated or missing, all are named; or no sizes are recorded.
    """
    parameters = directory / "params"
    folders = [path for path in sorted(parameters.glob("*/")) if not path.name.startswith(".")]
    if not (directory / MANIFEST).exists():
        if (parameters / _OLDER_SIZES).exists():
            return _check(parameters, _read_sizes(parameters / _OLDER_SIZES))
        if all((folder / SIZES).exists() for folder in folders):
            for folder in folders:
                check_part_sizes(folder)
            return None
    entries = read_manifest(directory)
    return _check(directory, {name: entry["bytes"] for name, entry in entries.items() if name.startswith("params/")})


def file_sizes(folder: Path) -> dict[str, int]:
    """Returns the sizes of all files below a folder, by their names relative to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _read_sizes(path: Path) -> dict[str, int]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise SparkError(f"{path}: expected a mapping of names to sizes, found {type(content).__name__}")
    return content


def _check(folder: Path, expected: dict[str, int]) -> None:
    found = file_sizes(folder)
    problems = [
        f"{folder / name} has {found[name]} bytes, expected {size}" if name in found else f"{folder / name} is missing"
        for name, size in expected.items()
        if found.get(name) != size
    ]
    if problems:
        raise SparkError(f"incomplete model: {'; '.join(problems)}")


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    names = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
    hashes = hash_files(folder, (name for name in names if name != MANIFEST))
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256} for name, sha256 in hashes.items()}


def _not_plain(folder: Path) -> list[str]:
    """Links and devices have no bytes of their own to vouch for; empty folders mean nothing."""
    odd = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not (path.is_file() or path.is_dir()))
    return [f"{path} is no plain file" for path in odd]


def _text(entries: dict[str, dict[str, Any]]) -> str:
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    return f'{{\n "algorithm": "sha256",\n "files": {{\n{lines}\n }}\n}}\n'
