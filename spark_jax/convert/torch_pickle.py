"""Reads the tensors of a torch checkpoint (`pytorch_model.bin`) without torch and without running anything.

A torch checkpoint is a zip archive: `data.pkl`, a pickle that describes the tensors, and one entry of raw
numbers per storage. A pickle is a program; here it can name nothing but the few functions that a state dict
needs, each replaced by a description of what it would build. Everything else is refused, and none of it runs.
"""

import collections
import functools
import io
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spark_jax.convert.tensors import BFLOAT16, SourceTensor
from spark_jax.errors import SparkError

_STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"), "FloatStorage": np.dtype("<f4"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16, "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}  # fmt: skip
_MAX_DESCRIPTION_BYTES = 64 << 20  # of data.pkl; that of a 24-layer model is 0.1 MB


class _Storage(NamedTuple):
    entry: str  # of the archive
    dtype: np.dtype
    size: int  # in elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class _Allowed:
    """A callable that the pickle may name: no attributes to overwrite, no state to set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments):
        return self._call(*arguments)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError("a pickle may not set attributes")


class _StorageType(NamedTuple):
    dtype: np.dtype


def read_torch_pickle(path: Path) -> dict[str, SourceTensor]:
    """The tensors of a torch zip checkpoint that holds a state dict, by name; values are read when asked for.

    Raises:
      SparkError: the file is missing or truncated; it is a pickle of before torch 1.6 (no zip archive); it
        names anything but tensors (the name is in the message, and nothing was run); a tensor reaches beyond
        its storage.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
        if magic[:1] == b"\x80":
            raise SparkError(
                f"{path}: a bare pickle, the format of before torch 1.6; expected a zip archive "
                "(load it and save it again with a newer torch)"
            )
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except SparkError:
        raise
    except FileNotFoundError as error:
        raise SparkError(f"{path}: no such file") from error
    except Exception as error:  # zipfile answers a damaged archive with many types
        raise SparkError(f"{path}: not a complete torch checkpoint ({error})") from error


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, SourceTensor]:
    entries = {info.filename: info for info in archive.infolist()}
    descriptions = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(descriptions) != 1:
        raise SparkError(f"{path}: {len(descriptions)} entries named data.pkl; a torch checkpoint has one")
    root = descriptions[0].removesuffix("data.pkl")
    for info in entries.values():
        # torch stores its entries as they are; a packed one could unfold to any size.
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise SparkError(f"{path}: entry {info.filename} is compressed or encrypted; torch stores it plain")
    byte_order = entries.get(f"{root}byteorder")
    if byte_order is not None and archive.read(byte_order) != b"little":
        raise SparkError(f"{path}: numbers are stored big-endian; expected little-endian")
    if entries[descriptions[0]].file_size > _MAX_DESCRIPTION_BYTES:
        raise SparkError(f"{path}: data.pkl has {entries[descriptions[0]].file_size} bytes; that is no state dict")
    state = _unpickle(path, archive.read(descriptions[0]), root)
    if not isinstance(state, dict):
        raise SparkError(f"{path}: holds a {type(state).__name__}; expected a state dict (names to tensors)")
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise SparkError(f"{path}: entry {name!r} of the state dict is no tensor")
        info = entries.get(tensor.storage.entry)
        if info is None:
            raise SparkError(f"{path}: tensor {name} lies in {tensor.storage.entry}, which the archive lacks")
        _check_bounds(path, name, tensor, info)
        read = functools.partial(_read_tensor, path, tensor, info)
        tensors[name] = SourceTensor(tensor.shape, tensor.storage.dtype, read)
    return tensors


def _unpickle(path: Path, data: bytes, root: str) -> Any:
    """Runs the pickle program with its vocabulary cut down to descriptions of tensors."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "torch" and name in _STORAGE_DTYPES:
                return _StorageType(_STORAGE_DTYPES[name])
            allowed = {
                ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
                ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
                ("collections", "OrderedDict"): collections.OrderedDict,
            }.get((module, name))
            if allowed is None:
                raise SparkError(f"{path}: the pickle names {module}.{name}; refused, nothing was run")
            return _Allowed(allowed)

        def persistent_load(self, identifier: Any) -> _Storage:
            kind, storage_type, key, _, size = identifier
            if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
                raise pickle.UnpicklingError(f"unknown persistent identifier {identifier!r}")
            return _Storage(f"{root}data/{key}", storage_type.dtype, _natural(size))

    try:
        for operation, argument, _ in pickletools.genops(data):
            # CPython sizes its memo by the largest index: an index no honest program reaches eats the memory.
            if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
                raise pickle.UnpicklingError(f"memo index {argument}")
            if operation.name in ("BYTEARRAY8", "NEXT_BUFFER", "EXT1", "EXT2", "EXT4"):
                raise pickle.UnpicklingError(f"operation {operation.name}")
        return Unpickler(io.BytesIO(data)).load()
    except SparkError:
        raise
    except Exception as error:  # whatever a malformed program provokes: it is the file's fault
        reason = " ".join(str(error).split())
        raise SparkError(f"{path}: data.pkl is not the description of a state dict ({reason})") from error


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise pickle.UnpicklingError(f"expected a size, found {value!r}")
    return value


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stands for torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise pickle.UnpicklingError("malformed tensor")
    return _Tensor(storage, _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, strides)))


def _rebuild_parameter(tensor: Any, *_: Any) -> _Tensor:
    """Stands for torch._utils._rebuild_parameter(data, requires_grad, hooks)."""
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError("malformed parameter")
    return tensor


def _check_bounds(path: Path, name: str, tensor: _Tensor, info: zipfile.ZipInfo) -> None:
    storage = tensor.storage
    if storage.size * storage.dtype.itemsize > info.file_size:
        raise SparkError(
            f"{path}: tensor {name} needs {storage.size} {storage.dtype} values of {storage.entry}, "
            f"which has {info.file_size} bytes"
        )
    count = math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if count > storage.size or (count and last >= storage.size):
        raise SparkError(f"{path}: tensor {name} of shape {tensor.shape} reaches beyond its storage")


def _read_tensor(path: Path, tensor: _Tensor, info: zipfile.ZipInfo) -> np.ndarray:
    """Reads one storage, whose zip entry is plain bytes, and views it as the tensor."""
    storage = tensor.storage
    raw = np.empty(info.file_size, np.uint8)
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local_header = file.read(30)
        if len(local_header) < 30:
            raise SparkError(f"{path}: the file ends before entry {storage.entry}")
        name_size, extra_size = struct.unpack("<HH", local_header[26:])  # the directory's copy may differ
        file.seek(name_size + extra_size, 1)
        complete = file.readinto(raw) == raw.nbytes
    if not complete or zlib.crc32(raw) != info.CRC:
        raise SparkError(f"{path}: entry {storage.entry} is damaged (its checksum differs)")
    values = raw[: storage.size * storage.dtype.itemsize].view(storage.dtype)[tensor.offset :]
    strides = tuple(step * storage.dtype.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
