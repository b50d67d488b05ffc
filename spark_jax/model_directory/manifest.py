"""The hashes of a model directory: `manifest.json` lists every other file with its size and SHA-256.

It is written last. `check` compares the manifest, byte for byte, with the one that the directory would get now:
no change to any file, the manifest included, can go unseen.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spark_jax.errors import SparkError, one_line

MANIFEST = "manifest.json"


def hash_files(folder: str | Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 (hexadecimal) of files by their names relative to a folder; several are read at a time.

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
            raise SparkError(f"{path}: cannot be read ({error.strerror})") from error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter free
        return dict(zip(names, pool.map(digest, names), strict=True))


def write_manifest(folder: str | Path) -> None:
    """Writes `manifest.json`; nothing in the folder may change afterwards.

    Raises:
      SparkError: the folder holds something else than plain files and folders, or a file cannot be read.
    """
    if problems := _not_plain(Path(folder)):
        raise SparkError("; ".join(problems))
    (Path(folder) / MANIFEST).write_text(_text(_entries(Path(folder))), encoding="utf-8")


def check(directory: str | Path) -> int:
    """Number of files, all of which are as they were written.

    Raises:
      SparkError: there is no manifest; or a file is changed, truncated, missing or extra: all are named.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if directory.is_dir() and not path.exists():
        raise SparkError(f"{path}: no such file; the model was written without hashes and cannot be checked")
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
    if not problems and path.read_bytes() != _text(found).encode():
        problems.append(f"{path} is changed: it says the same in another form")
    if problems:
        raise SparkError(f"{len(problems)} files are not as they were written: {'; '.join(problems)}")
    return len(found)


def read_manifest(directory: str | Path) -> dict[str, dict[str, Any]]:
    """{"bytes": size, "sha256": hexadecimal} of every file, by its name relative to the directory.

    Raises:
      SparkError: `manifest.json` is missing or malformed.
    """
    path = Path(directory) / MANIFEST
    try:
        files = json.loads(path.read_bytes())["files"]
        return {name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in files.items()}
    except OSError as error:
        raise SparkError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = one_line(error)
        raise SparkError(f"{path}: not a list of files with bytes and sha256 ({reason})") from error


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
