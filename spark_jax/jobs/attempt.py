"""An attempt at a shard: a folder of its own that fills with speech and in the end gets the shard's name.

What is spoken stands in a journal beside the files, a line each, written after the file. An attempt takes over (by hard
links where there are some) what earlier ones left, and disturbs none that may be alive yet: a worker that was taken for
dead, or a second one by mistake. Of several that finish the first counts; the others come to the same.
"""

import dataclasses
import os
import secrets
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from spark_jax.errors import SparkError
from spark_jax.inference.audio import Audio
from spark_jax.jobs.folder import ERRORS, MANIFEST, JobFolder
from spark_jax.jobs.lines import Job, file_stem, hashed
from spark_jax.jobs.shards import Shard
from spark_jax.shared import files
from spark_jax.shared.json_lines import dump_line, parse_line

JOURNAL = "journal.jsonl"


@dataclasses.dataclass(frozen=True)
class Tally:
    """What became of jobs.

    Attributes:
      spoken: how many have speech.
      failed: how many have an error.
      seconds: of audio.
    """

    spoken: int = 0
    failed: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.spoken + other.spoken, self.failed + other.failed, self.seconds + other.seconds)


class Attempt:
    """An attempt at a shard; a context. One thread reads the jobs, any may keep speech."""

    def __init__(self, folder: JobFolder, shard: Shard, format: str, transcripts: bool):
        """Makes the folder and takes over what earlier attempts left.

        Args:
          folder: of the batch.
          shard: the shard.
          format: of the audio files, a key of `audio.write.FORMATS`.
          transcripts: writes what was spoken beside each of them.

        Raises:
          SparkError: the folder cannot be written.
        """
        self._folder, self._shard, self._format, self._transcripts = folder, shard, format, transcripts
        self._path = folder.work / f"{shard.number:05d}-{secrets.token_hex(6)}"
        self._records: dict[int, dict[str, Any]] = {}  # by line
        self._errors: dict[int, dict[str, Any]] = {}
        self._stems: set[str] = set()
        self._lock = threading.Lock()
        earlier = folder.attempts(shard)
        try:
            self._path.mkdir(parents=True)
            self._journal = (self._path / JOURNAL).open("ab", buffering=0)
            for attempt in earlier:
                self._take_over(attempt)
        except OSError as error:
            raise files.cannot_write(self._path, error) from error

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()

    def stem(self, job: Job) -> str:
        """Returns the name of a job's files, without extension; the shard's jobs ask in their order."""
        stem = file_stem(job.id)
        if stem.casefold() in self._stems:  # names that differ in their case alone
            stem = hashed(stem, job.id)
        self._stems.add(stem.casefold())
        return stem

    def has(self, line: int) -> bool:
        """Returns whether a line's speech is there."""
        return line in self._records

    def keep(self, job: Job, stem: str, audio: Audio, seconds: float, warnings: list[str]) -> None:
        """Writes the speech of a job; after an error or a kill it is as if this had never begun.

        Args:
          job: the job.
          stem: see `stem`.
          audio: its speech.
          seconds: that it took.
          warnings: what the model could not do of what was asked for.

        Raises:
          SparkError: a file cannot be written.
        """
        names = [f"{stem}.{self._format}"]
        audio.save(self._path / names[0], self._format)
        if self._transcripts:
            names.append(f"{stem}.txt")
            spoken = "".join(f"{span.text}\n" for span in audio.spans)
            files.write_bytes(self._path / names[1], spoken.encode("utf-8", "backslashreplace"))
        record = {
            "id": job.id,
            "file": f"{self._folder.name(self._shard)}/{names[0]}",
            "text": job.request.text,
            "duration": round(len(audio.samples) / audio.sample_rate, 6),
            "tokens": len(audio.semantic_ids),
            "seed": job.request.seed,
            "reached_limit": audio.reached_limit,
            "checks": [dataclasses.asdict(finding) for finding in audio.checks],
            "warnings": warnings,
            "seconds": round(seconds, 3),
            "line": job.line,
        }
        sizes = {name: (self._path / name).stat().st_size for name in names}
        self._note(record, sizes)

    def fault(self, line: int, id: str | None, reason: str) -> None:
        """Notes what is wrong with a line."""
        self._errors[line] = {"line": line, "id": id, "reason": reason}

    def finish(self) -> Tally:
        """Writes the lists of the shard and gives its folder the shard's name.

        Raises:
          SparkError: it cannot be written.
        """
        tally = Tally(
            len(self._records), len(self._errors), sum(record["duration"] for record in self._records.values())
        )
        final = self._folder.path / self._folder.name(self._shard)
        try:
            for name, found in ((MANIFEST, self._records), (ERRORS, self._errors)):
                files.write_bytes(self._path / name, b"".join(dump_line(found[line]) for line in sorted(found)))
            self._journal.close()
            (self._path / JOURNAL).unlink()
            final.parent.mkdir(exist_ok=True)
            os.rename(self._path, final)
        except (SparkError, OSError) as error:
            if not self._folder.is_done(self._shard):  # by another, who has also removed this attempt
                raise error if isinstance(error, SparkError) else files.cannot_write(final, error) from error
        for attempt in self._folder.attempts(self._shard):
            shutil.rmtree(attempt, ignore_errors=True)
        return tally

    def _note(self, record: dict[str, Any], sizes: dict[str, int]) -> None:
        with self._lock:
            self._records[record["line"]] = record
            self._journal.write(dump_line({"sizes": sizes, "record": record}))

    def _take_over(self, attempt: Path) -> None:
        for entry in read_journal(attempt):
            record, sizes = entry["record"], entry["sizes"]
            if record["line"] in self._records:
                continue
            try:
                if all((attempt / name).stat().st_size == size for name, size in sizes.items()):
                    for name in sizes:
                        _link(attempt / name, self._path / name)
                    self._note(record, sizes)
            except FileNotFoundError:  # another one has finished meanwhile, or the machine went down
                continue


def read_journal(attempt: Path) -> list[dict[str, Any]]:
    """Returns what stands in the journal of an attempt, but for a line that a kill has cut off."""
    try:
        content = (attempt / JOURNAL).read_bytes()
    except OSError:  # it has finished, or was killed before it began
        return []
    entries = []
    for line in content.splitlines(keepends=True):
        try:
            entry = parse_line(line)
        except SparkError:
            continue
        if line.endswith(b"\n") and entry is not None:
            entries.append(entry)
    return entries


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def tally_of(folder: JobFolder, shard: Shard) -> Tally:
    """Returns what became of the jobs of a finished shard.

    Raises:
      SparkError: its lists cannot be read.
    """
    records = folder.records(shard)
    failed = len(folder.records(shard, ERRORS))
    return Tally(len(records), failed, sum(record["duration"] for record in records))
