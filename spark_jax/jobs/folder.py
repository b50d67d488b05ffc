"""The output folder of a batch: what it was begun with, its shards, and the lists of the whole.

    DIR/batch.json            the input's hash and the settings; the same command goes on, another one is refused
    DIR/audio/00012/          a finished shard: audio files, manifest.jsonl, errors.jsonl
    DIR/.work/00012-3f9a…/    an attempt at a shard
    DIR/manifest.jsonl        of all shards, when all are finished; errors.jsonl as well

A finished shard depends on the input and the settings alone, but for the seconds that it took. It appears at once, by a
rename. Nothing else says what is done: no process needs to know of another.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_jax.errors import SparkError
from spark_jax.jobs.shards import Input, Shard
from spark_jax.model_directory import manifest
from spark_jax.shared import files
from spark_jax.shared.json_lines import parse_line

SETTINGS = "batch.json"
MANIFEST, ERRORS = "manifest.jsonl", "errors.jsonl"
_FORMAT = "spark-jax-batch"
_SHARD = re.compile(r"\d{5,}")


class JobFolder:
    """The output folder of a batch."""

    def __init__(self, path: str | os.PathLike[str]):
        """Args:
        path: the folder, which may not exist yet.
        """
        self.path = Path(path)
        self.work = self.path / ".work"

    def begin(self, source: Input, settings: Mapping[str, Any]) -> None:
        """Makes the folder, or checks that it is of this input and these settings.

        Raises:
          SparkError: it is of another input or of other settings, holds something else, or cannot be written.
        """
        own = {"format": _FORMAT, "version": 1, "input": {"sha256": source.sha256}, "settings": dict(settings)}
        path = self.path / SETTINGS
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = path.exists()
            if not found and any(not name.startswith(".") for name in os.listdir(self.path)):
                found = path.exists()  # another process may have begun meanwhile
                if not found:
                    raise SparkError(f"{self.path}: holds something else, expected a new name or an empty folder")
        except OSError as error:
            raise files.cannot_write(self.path, error) from error
        if not found:
            files.write_json(path, own)
            return
        begun = files.read_json(path)
        if not isinstance(begun, dict) or begun.get("format") != _FORMAT or not isinstance(begun.get("settings"), dict):
            raise SparkError(
                f"{path}: not the settings of a batch; expected a folder of `spark-jax batch`, or a new one"
            )
        if begun.get("input") != own["input"]:
            raise SparkError(f"{source.path}: has changed since {self.path} was begun; expected another folder for it")
        before = begun["settings"]
        for name in sorted(settings.keys() | before.keys()):
            if settings.get(name) == before.get(name):
                continue
            if name == "model":
                raise SparkError(
                    f"--model: not the model that {self.path} was begun with; expected that, or another folder"
                )
            was, now = (json.dumps(values.get(name)) for values in (before, settings))
            option = f"--{name.replace('_', '-')}"
            raise SparkError(
                f"{option} is {now}, but {self.path} was begun with {was}; expected that, or another folder"
            )

    def name(self, shard: Shard) -> str:
        """Returns the name of a shard's folder, relative to this one."""
        return f"audio/{shard.number:05d}"

    def is_done(self, shard: Shard) -> bool:
        """Returns whether a shard is finished."""
        return (self.path / self.name(shard)).is_dir()

    def left(self, shards: Sequence[Shard]) -> list[Shard]:
        """Returns the shards that are not finished."""
        try:
            with os.scandir(self.path / "audio") as found:
                done = {int(entry.name) for entry in found if _SHARD.fullmatch(entry.name) and entry.is_dir()}
        except FileNotFoundError:
            done = set()
        except OSError as error:
            raise files.cannot_read(self.path / "audio", error) from error
        return [shard for shard in shards if shard.number not in done]

    def attempts(self, shard: Shard) -> list[Path]:
        """Returns the folders of attempts at a shard."""
        return sorted(self.work.glob(f"{shard.number:05d}-*"))

    def records(self, shard: Shard, name: str = MANIFEST) -> list[dict[str, Any]]:
        """Returns what a finished shard's manifest or its errors list.

        Raises:
          SparkError: it cannot be read.
        """
        path = self.path / self.name(shard) / name
        return [record for line in files.read_bytes(path).splitlines() if (record := parse_line(line)) is not None]

    def merge(self, shards: Sequence[Shard]) -> bool:
        """Writes the lists of the whole, where every shard is finished, and drops the attempts. False: some are not.

        Whoever finishes last does so. Two at once write the same.

        Raises:
          SparkError: a list cannot be read or written.
        """
        if self.left(shards):
            return False
        for name in (MANIFEST, ERRORS):
            with files.open_atomic(self.path / name) as file:
                for shard in shards:
                    file.write(files.read_bytes(self.path / self.name(shard) / name))
        shutil.rmtree(self.work, ignore_errors=True)
        return True


def model_hash(directory: str | os.PathLike[str]) -> str:
    """Returns what tells a model's weights from others: a hash of the hashes, or sizes and times, of its files.

    Raises:
      SparkError: the directory cannot be read.
    """
    directory, digest = Path(directory), hashlib.sha256()
    digest.update(files.read_bytes(directory / "config.json", "a model directory"))
    for path in _lists(directory):
        digest.update(path.relative_to(directory).as_posix().encode() + files.read_bytes(path))
        if path.name != manifest.MANIFEST:  # a run writes weights of the same sizes anew
            digest.update(str(path.stat().st_mtime_ns).encode())
    return digest.hexdigest()


def _lists(directory: Path) -> Iterator[Path]:
    whole = directory / manifest.MANIFEST
    yield from [whole] if whole.is_file() else sorted(directory.glob(f"params/*/{manifest.SIZES}"))
