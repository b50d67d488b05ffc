"""Reads the tensors of a torch checkpoint (`pytorch_model.bin`) without torch and without running anything.

A torch checkpoint is a zip archive: `data.pkl`, a pickle that describes the tensors (see `pickle_program`), and one
plain entry of raw numbers per storage, which is mapped into memory. Nothing is unpacked, and no name of the archive
ever becomes a path. Shards are single checkpoints, named by an index: `spark_jax.convert.weights.read` puts them
together.
"""

import functools
import io
import math
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spark_jax.convert.formats import pickle_program
from spark_jax.convert.formats.pickle_program import Tensor
from spark_jax.convert.formats.tensors import SourceTensor, faulty_tensor
from spark_jax.errors import SparkError, one_line
from spark_jax.shared.files import cannot_read

_MAX_DIRECTORY_BYTES = 32 << 20  # of the archive's list of entries, whose objects take ten times as much memory
_MAX_AXES = 32
_MAX_AXIS = 1 << 40
_BLOCK = 1 << 20  # bytes checked at a time


class _Entry(NamedTuple):
    """Where the numbers of a storage lie in the file."""

    name: str
    start: int
    size: int
    crc: int


class _BoundedFile(io.FileIO):
    """A file that does not give too much at once: zipfile reads as much as the archive says its directory has."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"a directory of {size} bytes")
        return super().read(size)


def read_torch_pickle(path: Path) -> dict[str, SourceTensor]:
    """Reads the tensors of a torch zip checkpoint that holds a state dict, by name; values are mapped when asked for.

    A tensor that is none, or that reaches beyond its storage, is there with its `fault`, so that all faults of a
    file can be told together. Views of one storage, with any strides, are read as torch would; values are read-only.

    Raises:
      SparkError: the file is missing or truncated; it is a pickle of before torch 1.6 (no zip archive); the
        archive holds anything but plain entries; the pickle names or does anything but describe tensors (what, is
        in the message, and nothing was run).
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
        if magic[:1] == b"\x80":
            raise SparkError(
                f"{path}: a bare pickle, the format of before torch 1.6; expected a zip archive "
                "(load it and save it again with a newer torch)"
            )
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            return _read_archive(path, file, archive)
    except SparkError:
        raise
    except OSError as error:
        raise cannot_read(path, error) from error
    except Exception as error:  # zipfile answers a damaged archive with many types
        reason = one_line(error, 200)
        raise SparkError(f"{path}: not a complete torch checkpoint ({reason})") from error


def _read_archive(path: Path, file: io.FileIO, archive: zipfile.ZipFile) -> dict[str, SourceTensor]:
    entries = _plain_entries(path, file, archive)
    descriptions = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(descriptions) != 1:
        raise SparkError(f"{path}: {len(descriptions)} entries named data.pkl; a torch checkpoint has one")
    root = descriptions[0].removesuffix("data.pkl")
    byte_order = entries.get(f"{root}byteorder")
    if byte_order is not None and _bytes(path, byte_order, 16) != b"little":
        raise SparkError(f"{path}: numbers are stored big-endian; expected little-endian")
    try:
        state = pickle_program.evaluate(_bytes(path, entries[descriptions[0]], pickle_program.MAX_BYTES))
    except pickle_program.UnsafePickleError as error:
        raise SparkError(f"{path}: data.pkl {one_line(error)}") from error
    if type(state) is not dict:
        raise SparkError(f"{path}: holds a {type(state).__name__}; expected a state dict (names to tensors)")
    checked: set[str] = set()  # storages whose checksum was found right
    tensors = {name: _source_tensor(path, name, value, entries, root, checked) for name, value in state.items()}
    if not any(tensor.fault for tensor in tensors.values()):
        # torch writes no storage that nothing lies in: one that is left over means that a tensor names another's.
        used = {f"{root}data/{value.storage.key}" for value in state.values()}
        if unused := [name for name in entries if name.startswith(f"{root}data/") and name not in used]:
            shown = " ".join(unused[0].split())[:200]
            raise SparkError(f"{path}: no tensor lies in {shown}; the description of some tensor is damaged")
    return tensors


def _plain_entries(path: Path, file: io.FileIO, archive: zipfile.ZipFile) -> dict[str, _Entry]:
    """The archive's entries by name; each lies in the file as it is, and none over another."""
    entries: dict[str, _Entry] = {}
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = info.filename
        shown = " ".join(name.split())[:200]
        if name in entries:
            raise SparkError(f"{path}: two entries are named {shown}")
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise SparkError(f"{path}: entry {shown} is a path out of the archive; refused")
        # torch stores its entries as they are; a packed one could unfold to any size.
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise SparkError(f"{path}: entry {shown} is compressed or encrypted; torch stores it plain")
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise SparkError(f"{path}: not a complete torch checkpoint (entry {shown} is not where it should be)")
        name_size, extra_size = struct.unpack("<HH", header[26:])  # the directory's copy may differ
        start = info.header_offset + 30 + name_size + extra_size
        if info.header_offset < end or start + info.file_size > archive.start_dir:
            raise SparkError(f"{path}: entry {shown} of {info.file_size} bytes lies over others or beyond the file")
        end = start + info.file_size
        entries[name] = _Entry(name, start, info.file_size, info.CRC)
    return entries


def _source_tensor(
    path: Path, name: str, value: Any, entries: dict[str, _Entry], root: str, checked: set[str]
) -> SourceTensor:
    if not isinstance(value, Tensor):
        return faulty_tensor(path, name, "is no tensor")
    storage = value.storage
    # A key is a number in every file of torch's; it is looked up in the archive and nowhere else.
    entry = entries.get(f"{root}data/{storage.key}") if re.fullmatch(r"[\w.-]{1,64}", storage.key) else None
    if entry is None:
        return faulty_tensor(path, name, f"lies in storage {storage.key[:64]!r}, which the archive lacks")
    if len(value.shape) > _MAX_AXES or max(value.shape, default=0) > _MAX_AXIS:
        return faulty_tensor(path, name, f"has {len(value.shape)} axes, the longest of {max(value.shape)}: too many")
    if storage.size * storage.dtype.itemsize > entry.size:
        return faulty_tensor(
            path, name, f"needs {storage.size} {storage.dtype} values of {entry.name}, which has {entry.size} bytes"
        )
    count = math.prod(value.shape)
    if count > storage.size or (count and _last(value) >= storage.size):
        return faulty_tensor(path, name, f"of shape {list(value.shape)} reaches beyond its storage")
    read = functools.partial(_read_tensor, path, value, entry, checked)
    return SourceTensor(value.shape, storage.dtype, read)


def _read_tensor(path: Path, tensor: Tensor, entry: _Entry, checked: set[str]) -> np.ndarray:
    """Maps what a tensor spans of its storage, after the whole storage's checksum was found right once."""
    if os.stat(path).st_size < entry.start + entry.size:
        raise SparkError(f"{path}: the file ends within entry {entry.name}")
    if entry.name not in checked:
        _check(path, entry)
        checked.add(entry.name)
    dtype = tensor.storage.dtype
    if math.prod(tensor.shape) == 0:
        return np.broadcast_to(np.zeros((), dtype), tensor.shape)  # read-only, as the others
    span = _last(tensor) - tensor.offset + 1
    values = np.memmap(path, dtype, "r", entry.start + tensor.offset * dtype.itemsize, (span,))
    strides = tuple(step * dtype.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)


def _check(path: Path, entry: _Entry) -> None:
    crc, left = 0, entry.size
    with open(path, "rb") as file:
        file.seek(entry.start)
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    if left or crc != entry.crc:
        raise SparkError(f"{path}: entry {entry.name} is damaged (its checksum differs)")


def _bytes(path: Path, entry: _Entry, most: int) -> bytes:
    if entry.size > most:
        raise SparkError(f"{path}: {entry.name} has {entry.size} bytes, at most {most} are expected")
    _check(path, entry)
    with open(path, "rb") as file:
        file.seek(entry.start)
        return file.read(entry.size)


def _last(tensor: Tensor) -> int:
    """Index of the last element of a tensor that has any."""
    return tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
