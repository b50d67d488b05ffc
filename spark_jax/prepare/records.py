"""Writes a corpus as sharded ArrayRecord files, which training reads where and when it needs them.

    spark-jax prepare token-records runs/tokens.jsonl records/tokens --tokenizer runs/llm/tokenizer --shards 64
    spark-jax prepare audio-records corpus records/audio --shards 256 [--tokens runs/tokens.jsonl]

OUT gets, for every split that the records name, files `train-00000-of-00064.array_record`, …, and an index
(spark_jax/data/records.py has the format). A shard holds a run of the input's lines, so that the output depends on
input and options alone, not on the workers. Finished shards are noted in OUT: a killed run goes on where it stopped.
"""

import dataclasses
import functools
import hashlib
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import soundfile
import typer
from tqdm import tqdm

from spark_jax.config import SparkConfig
from spark_jax.data import audio_sources, manifest, records, sources, token_sources, tokens
from spark_jax.errors import SparkError, one_line
from spark_jax.shared.config_files import load_config
from spark_jax.text.tokenizer import open_tokenizer

CORES = os.cpu_count() or 1

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Output = Annotated[Path, typer.Argument(help="Folder for shards and indices.")]
Shards = Annotated[int, typer.Option(min=1, max=99_999, help="Files that each split is divided into.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
OnError = Annotated[str, typer.Option(help="A line or file that cannot be used: raise, or skip and count it.")]


class Item(NamedTuple):
    """A record to write, and what the index says of it."""

    data: bytes
    columns: dict[str, int]


# A line's record → its item, or why it is dropped. SparkError, TypeError, ValueError: it cannot be used.
Converter = Callable[[dict[str, Any]], Item | str]


@app.callback()
def make_records() -> None:
    """Writes a corpus as sharded ArrayRecord files."""


@app.command("tokens")
def token_records(
    source: Annotated[Path, typer.Argument(help="JSON Lines of `spark-jax prepare encode`.")],
    output: Output,
    tokenizer: Annotated[str, typer.Option(help='That of the training: a folder, a ranks file, or "bytes".')],
    model: Annotated[str | None, typer.Option(help="YAML of a SparkConfig; default: the release's sizes.")] = None,
    shards: Shards = 16,
    workers: Workers = CORES,
    on_error: OnError = "raise",
) -> None:
    """Token records, for train/llm.py."""
    _run(TokenConversion(tokenizer, model), source, output, shards, workers, on_error)


@app.command("audio")
def audio_records(
    corpus: Annotated[Path, typer.Argument(help="Folder with metadata.jsonl and audio files.")],
    output: Output,
    tokens: Annotated[
        Path | None, typer.Option(help="JSON Lines of `spark-jax prepare encode`: its ids go into the records.")
    ] = None,
    sample_rate: Annotated[int, typer.Option(help="Of all files, in Hz.")] = 16_000,
    shards: Shards = 16,
    workers: Workers = CORES,
    on_error: OnError = "raise",
) -> None:
    """Audio records, for train/bicodec.py: FLAC files as they are, others as 16-bit FLAC of their first channel."""
    conversion = AudioConversion(str(corpus), None if tokens is None else str(tokens), sample_rate)
    _run(conversion, corpus / "metadata.jsonl", output, shards, workers, on_error)


@dataclasses.dataclass(frozen=True)
class TokenConversion:
    tokenizer: str
    model: str | None

    kind = "tokens"
    fields = token_sources.RECORD_FIELDS

    @property
    def index_fields(self) -> dict[str, Any]:
        return {"faults": token_sources.FAULTS}

    def converter(self) -> Converter:
        tokenizer = open_tokenizer(self.tokenizer, load_config(SparkConfig, self.model))
        classes = tokens.class_table(tokenizer)

        def convert(record: dict[str, Any]) -> Item | str:
            if fault := token_sources.utterance_fault(record):
                return fault
            tokens.make_example(tokenizer, classes, tokens.TTS, record)  # refuses what training would refuse
            count = token_sources.content_tokens(tokenizer, record)
            if count >= 1 << 16:
                return "too long"
            fault = token_sources.FAULTS.index(token_sources.controllable_fault(record))
            arrays = {name: records.as_codes(record[name]) for name in audio_sources.TOKEN_FIELDS}
            fields = {name: value for name, value in record.items() if name not in arrays}
            return Item(records.encode(fields, arrays), {"tokens": count, "fault": fault})

        return convert


@dataclasses.dataclass(frozen=True)
class AudioConversion:
    corpus: str
    tokens: str | None
    sample_rate: int

    kind = "audio"
    fields = (*manifest.CORPUS_FIELDS, "split")

    @property
    def index_fields(self) -> dict[str, Any]:
        return {"sample_rate": self.sample_rate}

    def converter(self) -> Converter:
        names = audio_sources.TOKEN_FIELDS
        lines = [] if self.tokens is None else manifest.read_jsonl(self.tokens, ["index", *names])
        ids = {line["index"]: {name: records.as_codes(line[name]) for name in names} for line in lines}

        def convert(record: dict[str, Any]) -> Item | str:
            path = Path(self.corpus) / record["wav_path"]
            try:
                content = path.read_bytes()
                with soundfile.SoundFile(io.BytesIO(content)) as file:
                    as_it_is = file.format == "FLAC" and file.channels == 1
            except (OSError, soundfile.SoundFileError) as error:
                raise SparkError(f"{path}: cannot be read as audio ({error})") from error
            samples = manifest.read_audio(io.BytesIO(content), self.sample_rate, str(path))  # it decodes to its end
            if not as_it_is:
                flac = io.BytesIO()
                soundfile.write(flac, samples, self.sample_rate, format="FLAC", subtype="PCM_16")
                content = flac.getvalue()
            arrays = {"audio": np.frombuffer(content, np.uint8)} | ids.get(record["index"], {})
            fields = {name: value for name, value in record.items() if name != "wav_path"}
            columns = {"samples": len(samples), "tokens": len(arrays.get("semantic_ids", ()))}
            return Item(records.encode(fields, arrays), columns)

        return convert


Conversion = TokenConversion | AudioConversion
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
        """Where a finished shard is noted until the indices are written."""
        return self.output / f".shard-{shard:05d}-of-{self.shards:05d}"

    def span(self, shard: int) -> tuple[int, int]:
        """A shard holds the lines that begin in these bytes of the source."""
        return self.size * shard // self.shards, self.size * (shard + 1) // self.shards


def _run(conversion: Conversion, source: Path, output: Path, shards: int, workers: int, on_error: str) -> None:
    try:
        if on_error not in ("raise", "skip"):
            raise SparkError(f"--on-error is {on_error!r}, expected raise or skip")
        convert(conversion, source, output, shards, workers, on_error)
    except SparkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def convert(
    conversion: Conversion, source: Path, output: Path, shards: int, workers: int = 1, on_error: str = "raise"
) -> None:
    """Writes all shards, then the indices.

    Raises:
      SparkError: a line that cannot be used, a folder that holds records already, or one that cannot be written.
    """
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
    names = sorted({split for note in notes for split in note.fields["splits"]})
    lost = sources.total([note.fields["dropped"].get("", {}) for note in notes])
    if not names:
        raise SparkError(f"{source}: no record, {sources.describe(lost)}")
    for split in names:
        having = [note for note in notes if split in note.fields["splits"]]
        columns = {
            name: np.concatenate([note.arrays[f"{split}/{name}"] for note in having])
            for name in records.COLUMNS[conversion.kind]
        }
        dropped = sources.total([note.fields["dropped"].get(split, {}) for note in notes])
        shards_of = [records.Shard(*note.fields["splits"][split]) for note in having]
        records.write_index(output, split, conversion.kind, shards_of, columns, dropped, **conversion.index_fields)
        count = sum(shard.records for shard in shards_of)
        print(f"{split}: {count:,} records, {sources.describe(dropped)}", file=sys.stderr)
    if lost:
        print(f"of no split: {sources.describe(lost)}", file=sys.stderr)
    for shard in range(shards):
        job.note(shard).unlink()


def write_shard(job: Job, shard: int) -> records.Record:
    """Writes one shard of every split; its note, which an earlier run may have left.

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
        for offset, line in lines(job.source, *job.span(shard)):
            where = f"{job.source}: byte {offset}"
            nowhere = dropped.setdefault("", sources.DropCounter(job.on_error))
            record = manifest.parse_record(line, job.conversion.fields, where, nowhere)
            if record is None:
                continue
            split = str(record["split"])
            left_out = dropped.setdefault(split, sources.DropCounter(job.on_error))
            try:
                item = convert_record(record)
            except (SparkError, TypeError, ValueError) as error:
                reason = one_line(error)
                left_out.fault("unusable", SparkError(f"{where}: utterance {record['index']}: {reason}"))
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
    temporary = job.note(shard).with_suffix(f".{os.getpid()}")
    try:
        temporary.write_bytes(note)
        os.replace(temporary, job.note(shard))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SparkError(f"{job.note(shard)}: cannot be written ({error.strerror})") from error
    return records.decode(note)


def lines(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that begin at bytes from `start` to before `stop`, each with its place."""
    try:
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()  # the rest of the line before
            while (offset := file.tell()) < stop and (line := file.readline()):
                yield offset, line
    except OSError as error:
        raise SparkError(f"{path}: cannot be read ({error.strerror})") from error


def _finished(job: Job, shard: int, digest: str) -> records.Record | None:
    """The note of a shard that an earlier run wrote from the same input, if its files are there."""
    try:
        note = records.decode(job.note(shard).read_bytes())
        written = [records.Shard(*entry) for entry in note.fields["splits"].values()]
        whole = all((job.output / entry.name).stat().st_size == entry.bytes for entry in written)
        return note if whole and note.fields["digest"] == digest else None
    except (OSError, ValueError, KeyError):
        return None


if __name__ == "__main__":
    app()
