"""Sharded ArrayRecord files with an index: the format of corpora that do not fit in memory.

    DIR/train-00000-of-00016.array_record …   records, each of which can be read alone
    DIR/train.index.safetensors               what is known of them without reading them; written last

Records and index have one encoding, a safetensors file of named integer arrays. The array `fields` is a JSON object in
UTF-8, the others are its large parts:

    token record   `global_ids`, `semantic_ids` (uint16); fields: the rest of the line of `spark-jax prepare encode`
    audio record   `audio` (uint8, a mono FLAC file), perhaps both ids; fields: the rest of the metadata's line
    index          columns, one value a record: of tokens `tokens` (uint16: of text, global and semantic ids together)
                   and `fault` (uint8: why it gives no controllable_tts sequence, a place in `faults`); of audio
                   `samples` (uint32) and `tokens` (uint16: semantic ids)
                   fields: `version`, `kind`, `shards` [{name, records, bytes}], `dropped` {reason: count}, and
                   `faults` (tokens) or `sample_rate` (audio)

Record numbers run through the shards in the order of the index. `spark-jax prepare` writes all of this.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from array_record.python import array_record_module
from jaxtyping import UInt16

from spark_jax.errors import SparkError, one_line
from spark_jax.shared.files import temporary_name, write_bytes

VERSION = 1
INDEX_SUFFIX = ".index.safetensors"
SHARD_NAME = "{split}-{shard:05d}-of-{shards:05d}.array_record"

Kind = Literal["tokens", "audio"]
COLUMNS: Mapping[str, Mapping[str, type]] = {
    "tokens": {"tokens": np.uint16, "fault": np.uint8},
    "audio": {"samples": np.uint32, "tokens": np.uint16},
}
_MORE_FIELDS: Mapping[str, str] = {"tokens": "faults", "audio": "sample_rate"}


class Record(NamedTuple):
    fields: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Shard(NamedTuple):
    name: str
    records: int
    bytes: int


def encode(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Encodes a record; the same content gives the same bytes."""
    text = json.dumps(dict(fields), ensure_ascii=False, separators=(",", ":")).encode()
    return safetensors.numpy.save({"fields": np.frombuffer(text, np.uint8), **arrays})


def decode(data: bytes) -> Record:
    """Decodes a record: the inverse of `encode`.

    Raises:
      ValueError: the bytes are something else.
    """
    try:
        arrays = safetensors.numpy.load(data)
        fields = json.loads(arrays.pop("fields").tobytes())
    except (safetensors.SafetensorError, KeyError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(fields, dict):
        raise ValueError("the fields are no JSON object")
    return Record(fields, arrays)


def as_codes(values: Sequence[Any] | np.ndarray) -> UInt16[np.ndarray, " codes"]:
    """Returns ids as a record stores them.

    Raises:
      ValueError: something else than integers from 0 to 65535.
    """
    codes = np.asarray(values)
    if codes.ndim != 1 or (codes.size and not np.issubdtype(codes.dtype, np.integer)):
        raise ValueError(f"ids of shape {codes.shape}, type {codes.dtype}: expected a list of integers")
    if codes.size and not 0 <= codes.min() <= codes.max() < 1 << 16:
        raise ValueError(f"ids from {codes.min()} to {codes.max()}: expected 0 to 65535")
    return codes.astype(np.uint16)


class ShardWriter:
    """Writes one shard under a temporary name; it appears when it is closed.

    Raises:
      SparkError: (by every method) it cannot be written.
    """

    def __init__(self, path: Path):
        self._path, self._temporary, self._count = path, temporary_name(path), 0
        self._told(self._temporary.touch)  # the writer itself would tell a missing folder when it is closed
        # Groups of one record: nothing beside a record is read with it.
        self._writer = self._told(
            lambda: array_record_module.ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        )

    def write(self, record: bytes) -> None:
        """Appends an encoded record."""
        self._told(lambda: self._writer.write(record))
        self._count += 1

    def close(self) -> Shard:
        """Completes the shard, which gets its name now."""
        self._told(self._writer.close)
        size = self._temporary.stat().st_size
        os.replace(self._temporary, self._path)
        return Shard(self._path.name, self._count, size)

    def discard(self) -> None:
        """Leaves nothing behind of a shard that was not closed."""
        self._temporary.unlink(missing_ok=True)

    def _told(self, action: Any) -> Any:
        try:
            return action()
        except (RuntimeError, ValueError, OSError) as error:
            self.discard()
            raise SparkError(f"{self._path}: cannot be written ({one_line(error, 300)})") from error


def write_index(
    folder: Path,
    split: str,
    kind: Kind,
    shards: Sequence[Shard],
    columns: Mapping[str, np.ndarray],
    dropped: Mapping[str, int],
    **more: Any,
) -> None:
    """Writes the index of a split, at once.

    Args:
      columns: those of `COLUMNS[kind]`.
      dropped: utterances that were left out, by reason.
      more: further fields.

    Raises:
      SparkError: the file cannot be written.
    """
    fields = {
        "version": VERSION,
        "kind": kind,
        "shards": [shard._asdict() for shard in shards],
        "dropped": dict(dropped),
        **more,
    }
    typed = {name: np.asarray(columns[name], dtype) for name, dtype in COLUMNS[kind].items()}
    path = folder / (split + INDEX_SUFFIX)
    write_bytes(path, encode(fields, typed))


def splits(folder: str | Path) -> list[str]:
    """Returns the splits that a folder has an index of."""
    return sorted(path.name.removesuffix(INDEX_SUFFIX) for path in Path(folder).glob("*" + INDEX_SUFFIX))


class RecordReader:
    """The records of one split, read where and when they are asked for; only the index is in memory.

    Attributes:
      columns: of the index, by name.
      fields: of the index.
      folder: where the records lie.

    Raises:
      SparkError: no such records or records of another kind; an index that is damaged or empty; a shard that is
        missing or has another size than the index says.
    """

    def __init__(self, folder: str | Path, split: str, kind: Kind):
        self.folder = Path(folder)
        path = self.folder / (split + INDEX_SUFFIX)
        if not path.is_file():
            found = ", ".join(splits(folder)) or "none"
            raise SparkError(f"{path}: no such file; expected records of split {split!r}, found splits: {found}")
        try:
            self.fields, self.columns = decode(path.read_bytes())
            if self.fields["version"] != VERSION or self.fields["kind"] != kind:
                raise SparkError(
                    f"{path}: {self.fields['kind']} records of version {self.fields['version']}, "
                    f"expected {kind} records of version {VERSION}"
                )
            self._shards = [Shard(**shard) for shard in self.fields["shards"]]
            self._ends = np.cumsum([shard.records for shard in self._shards], dtype=np.int64)
            if missing := ({"dropped", _MORE_FIELDS[kind]} - self.fields.keys()):
                raise ValueError(f"no {min(missing)}")
            for name, dtype in COLUMNS[kind].items():
                if self.columns[name].shape != (sum(shard.records for shard in self._shards),):
                    raise ValueError(f"column {name} has {self.columns[name].shape}, the shards {self._ends[-1:]}")
                if self.columns[name].dtype != dtype:
                    raise ValueError(f"column {name} is {self.columns[name].dtype}, expected {np.dtype(dtype)}")
        except OSError as error:
            raise SparkError(f"{path}: cannot be read ({error.strerror})") from error
        except SparkError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise SparkError(f"{path}: not an index of records ({one_line(error, 300)})") from error
        if not self._shards or not self._ends[-1]:
            raise SparkError(f"{path}: holds no record")
        self._check_files()
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[Record | SparkError]:
        """Reads records by their numbers; in place of one that cannot be read stands its error, to raise or to count.

        Raises:
          SparkError: a shard cannot be opened, or holds another number of records than the index says.
        """
        numbers = np.asarray(numbers, np.int64)
        shards = np.searchsorted(self._ends, numbers, side="right")
        result: list[Any] = [None] * len(numbers)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            inside = (numbers[places] - (self._ends[shard] - self._shards[shard].records)).tolist()
            for place, data in zip(places.tolist(), self._read_shard(shard, inside), strict=True):
                try:
                    result[place] = decode(data) if isinstance(data, bytes) else data
                except ValueError as error:
                    result[place] = SparkError(f"{self.where(numbers[place])}: not a record ({one_line(error, 300)})")
        return result

    def where(self, number: int | np.integer) -> str:
        """Names the file and the number in it of a record, for messages."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        start = self._ends[shard] - self._shards[shard].records
        return f"{self.folder / self._shards[shard].name}: record {number - start}"

    def _read_shard(self, shard: int, inside: list[int]) -> list[bytes | SparkError]:
        reader = self._reader(shard)
        try:
            return reader.read(inside)
        except RuntimeError as error:
            if len(inside) > 1:  # one of them: which?
                return [record for number in inside for record in self._read_shard(shard, [number])]
            name = self.folder / self._shards[shard].name
            return [SparkError(f"{name}: record {inside[0]}: damaged ({one_line(error, 300)})")]

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if shard not in self._readers:
                name, count, _ = self._shards[shard]
                try:
                    # Read-ahead would fetch the neighbors of a record, which a shuffled epoch does not want.
                    reader = array_record_module.ArrayRecordReader(
                        str(self.folder / name), options="readahead_buffer_size:0", file_reader_buffer_size=1 << 15
                    )
                    if reader.num_records() != count:
                        raise RuntimeError(f"holds {reader.num_records()} records, its index says {count}")
                except RuntimeError as error:
                    raise SparkError(f"{self.folder / name}: {one_line(error, 300)}") from error
                self._readers[shard] = reader
            return self._readers[shard]

    def _check_files(self) -> None:
        """Names every shard that is missing or of another size: at once, not hours later."""
        problems = []
        for name, _, size in self._shards:
            try:
                found = (self.folder / name).stat().st_size
            except OSError as error:
                problems.append(f"{self.folder / name}: {error.strerror}")
                continue
            if found != size:
                problems.append(f"{self.folder / name}: {found} bytes, its index says {size}")
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise SparkError("; ".join(problems[:3]) + more)
