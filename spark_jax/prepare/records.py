"""Writes a corpus as sharded ArrayRecord files, which training reads where and when it needs them.

The output folder gets, for every split that the records name, files `train-00000-of-00064.array_record`, …, and an
index (spark_jax/data/records.py has the format). A shard holds a run of the input's lines, so that the output depends
on input and options alone, not on the workers. Finished shards are noted in the folder: a killed run goes on where it
stopped.
"""

import dataclasses
import functools
import hashlib
import multiprocessing
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from spark_jax.data import manifest, records, sources
from spark_jax.data.corpus_audio import UnusableAudioError
from spark_jax.errors import SparkError, one_line
from spark_jax.prepare.conversions import Conversion
from spark_jax.shared import files
from spark_jax.shared.json_lines import lines

_converter = functools.cache(lambda conversion: conversion.converter())  # once a process


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a shard depends on beside the lines of the input."""

    conversion: Conversion
    source: Path
    output: Path
    shards: int
    on_error: str
    size: int  # bytes of the source

    def note(self, shard: int) -> Path:
        """Returns where a finished shard is noted until the indices are written."""
        return self.output / f".shard-{shard:05d}-of-{self.shards:05d}"

    def span(self, shard: int) -> tuple[int, int]:
        """Returns the bytes of the source in which the lines of a shard begin."""
        return self.size * shard // self.shards, self.size * (shard + 1) // self.shards


def convert(
    conversion: Conversion, source: Path, output: Path, shards: int, workers: int = 1, on_error: str = "raise"
) -> None:
    """Writes all shards, then the indices.

    Args:
      source: JSON Lines, one utterance a line.
      output: folder without records of an earlier call; finished shards of a killed one are kept.
      shards: files that each split is divided into.
      workers: processes.
      on_error: what becomes of a line that cannot be used: raise, or skip and count it.

    Raises:
      SparkError: a line that cannot be used, a folder that holds records already, or one that cannot be written.
    """
    if on_error not in ("raise", "skip"):
        raise SparkError(f"--on-error is {on_error!r}, expected raise or skip")
    try:
        size = source.stat().st_size
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SparkError(f"{error.filename}: {error.strerror}") from error
    if found := records.splits(output):
        raise SparkError(f"{output}: holds records of {', '.join(found)} already, expected a folder without")
    job = Job(conversion, source, output, shards, on_error, size)
    if workers == 1:
        notes = [write_shard(job, shard) for shard in tqdm(range(shards), disable=not sys.stderr.isatty())]
    else:
        # Spawned: this process has threads (of JAX), which a fork would not survive.
        with ProcessPoolExecutor(min(workers, shards), multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(write_shard, job, shard) for shard in range(shards)]
            try:
                notes = [future.result() for future in tqdm(futures, disable=not sys.stderr.isatty())]
            except BrokenProcessPool as error:
                raise SparkError("a worker was killed, perhaps for memory; finished shards are kept") from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    _write_indices(job, notes)
    for shard in range(shards):
        job.note(shard).unlink()


def _write_indices(job: Job, notes: Sequence[records.Record]) -> None:
    """Writes the index of every split from the notes of all shards, and tells what was dropped."""
    names = sorted({split for note in notes for split in note.fields["splits"]})
    lost = sources.total([note.fields["dropped"].get("", {}) for note in notes])
    if not names:
        raise SparkError(f"{job.source}: no record, {sources.describe(lost)}")
    for split in names:
        having = [note for note in notes if split in note.fields["splits"]]
        columns = {
            name: np.concatenate([note.arrays[f"{split}/{name}"] for note in having])
            for name in records.COLUMNS[job.conversion.kind]
        }
        dropped = sources.total([note.fields["dropped"].get(split, {}) for note in notes])
        shards_of = [records.Shard(*note.fields["splits"][split]) for note in having]
        records.write_index(
            job.output, split, job.conversion.kind, shards_of, columns, dropped, **job.conversion.index_fields
        )
        count = sum(shard.records for shard in shards_of)
        print(f"{split}: {count:,} records, {sources.describe(dropped)}", file=sys.stderr)
    if lost:
        print(f"of no split: {sources.describe(lost)}", file=sys.stderr)


def write_shard(job: Job, shard: int) -> records.Record:
    """Writes one shard of every split, unless an earlier run has; returns its note.

    The note's fields are `digest` (of the lines and all they are converted with), `splits` {name: shard} and
    `dropped` {split: {reason: count}}, "" for lines without one; its arrays are the index' columns, `split/column`.
    """
    digest = hashlib.blake2b(repr((records.VERSION, job.conversion, job.on_error)).encode(), digest_size=16)
    for _, line in lines(job.source, *job.span(shard)):
        digest.update(line)
    if (note := _finished(job, shard, digest.hexdigest())) is not None:
        return note
    convert_record = _converter(job.conversion)
    writers: dict[str, records.ShardWriter] = {}
    columns: dict[str, list[dict[str, int]]] = {}
    dropped: dict[str, sources.DropCounter] = {}
    try:
        places = _Places(job.source, job.span(shard)[0])
        for _, line in lines(job.source, *job.span(shard)):
            where = places.next()
            nowhere = dropped.setdefault("", sources.DropCounter(job.on_error))
            record = manifest.parse_record(line, job.conversion.fields, where, nowhere)
            if record is None:
                continue
            split = record["split"]
            if not isinstance(split, str) or not re.fullmatch(r"\w[\w.-]*", split):
                reason = f"split is {split!r}, expected a name such as train"
                nowhere.fault("unusable", SparkError(f"{where}: utterance {record['index']!r}: {reason}"))
                continue
            left_out = dropped.setdefault(split, sources.DropCounter(job.on_error))
            try:
                item = convert_record(record)
            except (SparkError, TypeError, ValueError) as error:
                reason = error.reason if isinstance(error, UnusableAudioError) else "unusable"
                left_out.fault(reason, SparkError(f"{where}: utterance {record['index']}: {one_line(error)}"))
                continue
            if isinstance(item, str):
                left_out.add(item)
                continue
            if split not in writers:
                name = records.SHARD_NAME.format(split=split, shard=shard, shards=job.shards)
                writers[split] = records.ShardWriter(job.output / name)
            writers[split].write(item.data)
            columns.setdefault(split, []).append(item.columns)
        shards = {split: writer.close() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.discard()  # nothing is left of one that was closed
    fields = {
        "digest": digest.hexdigest(),
        "splits": shards,
        "dropped": {split: counter.counts for split, counter in dropped.items() if counter.counts},
    }
    arrays = {
        f"{split}/{name}": np.array([row[name] for row in rows], dtype)
        for split, rows in columns.items()
        for name, dtype in records.COLUMNS[job.conversion.kind].items()
    }
    note = records.encode(fields, arrays)
    files.write_bytes(job.note(shard), note)
    return records.decode(note)


class _Places:
    """The lines of a part of a file, for messages; the lines before it are counted when one is asked for."""

    def __init__(self, path: Path, start: int):
        self.path, self._start, self._passed = path, start, 0

    def next(self) -> "_Place":
        """Returns the place of the part's next line."""
        self._passed += 1
        return _Place(self, self._passed)

    @functools.cached_property
    def before(self) -> int:
        """Lines that begin before the part."""
        count, left = 0, max(self._start - 1, 0)
        with self.path.open("rb") as file:
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                count, left = count + block.count(b"\n"), left - len(block)
        return count + (self._start > 0)


@dataclasses.dataclass(frozen=True)
class _Place:
    """A line of a file; its number is looked for when it is told."""

    places: _Places
    passed: int

    def __str__(self) -> str:
        return f"{self.places.path}:{self.places.before + self.passed}"


def _finished(job: Job, shard: int, digest: str) -> records.Record | None:
    """The note of a shard that an earlier run wrote from the same input, if its files are there."""
    try:
        note = records.decode(job.note(shard).read_bytes())
        written = [records.Shard(*entry) for entry in note.fields["splits"].values()]
        whole = all((job.output / entry.name).stat().st_size == entry.bytes for entry in written)
        return note if whole and note.fields["digest"] == digest else None
    except (OSError, ValueError, KeyError):
        return None
