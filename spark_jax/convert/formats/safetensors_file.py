"""Reads and writes safetensors files one tensor at a time, bfloat16 included, with no framework but numpy."""

import functools
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from spark_jax.convert.formats.tensors import BFLOAT16, SourceTensor, faulty_tensor
from spark_jax.errors import SparkError, one_line
from spark_jax.shared.files import cannot_read, open_atomic

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def read_safetensors(path: Path) -> dict[str, SourceTensor]:
    """Reads the tensors of a safetensors file, by name.

    A tensor that the header describes wrongly, or that the file is too short for, is there with its `fault`, so
    that all faults of a file can be told together.

    Raises:
      SparkError: the file is missing, or its header cannot be read at all.
    """
    try:
        with open(path, "rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > min(_MAX_HEADER_BYTES, file_size - 8):
                raise ValueError(f"a header of {header_size} bytes in a file of {file_size}")
            header = json.loads(file.read(header_size), object_pairs_hook=_without_repetitions)
        if not isinstance(header, dict):
            raise ValueError("the header is no mapping")
    except OSError as error:
        raise cannot_read(path, error) from error
    except (ValueError, RecursionError, struct.error) as error:
        raise SparkError(f"{path}: not a safetensors file ({one_line(error)})") from error
    header.pop("__metadata__", None)
    start = 8 + header_size
    tensors = {name: _tensor(path, name, entry, start, file_size) for name, entry in header.items()}
    sound = {name: header[name]["data_offsets"] for name, tensor in tensors.items() if not tensor.fault}
    if len(sound) == len(tensors):
        for name, fault in _misplaced(sound, file_size - start).items():
            tensors[name] = faulty_tensor(path, name, fault)
    if not any(tensor.fault for tensor in tensors.values()):
        try:  # the format's own library, for whatever the above does not think of
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            raise SparkError(f"{path}: not a safetensors file ({one_line(error)})") from error
    return tensors


def write_safetensors(
    path: Path,
    specifications: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Writes a safetensors file from a stream of tensors, of which one at a time is in memory.

    Args:
      path: the file.
      specifications: shape and type of every tensor, in the order they get in the file (wider types first, so
        that each lies at a multiple of its own size).
      tensors: name and values, in any order; each has the shape and the type that was announced.

    Raises:
      SparkError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in sorted(specifications.items(), key=lambda item: -item[1][1].itemsize):
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unwritten = set(specifications)
    with open_atomic(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, values in tensors:
            if (values.shape, values.dtype) != specifications[name]:
                raise LookupError(f"{name} is {values.dtype}{values.shape}, announced {specifications[name]}")
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
            unwritten.remove(name)
        if unwritten:
            raise LookupError(f"never written: {', '.join(sorted(unwritten))}")


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is described twice")
    return mapping


def _tensor(path: Path, name: str, entry: Any, start: int, file_size: int) -> SourceTensor:
    """One entry of the header; data begins at byte `start` of the file."""
    fault = _fault(entry, file_size - start)
    if fault:
        return faulty_tensor(path, name, fault)
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    offset = start + entry["data_offsets"][0]
    return SourceTensor(shape, dtype, functools.partial(_read, path, name, offset, shape, dtype))


def _fault(entry: Any, data_size: int) -> str:
    """What is wrong with one entry of the header; "": nothing."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "is not described by dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        return f"has type {dtype!r}, expected one of {', '.join(_DTYPES)}"
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        return f"has shape {shape!r}, expected a list of sizes"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(at) is int and at >= 0 for at in offsets):
        return f"has data_offsets {offsets!r}, expected begin and end"
    size = math.prod(shape) * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        return f"of type {dtype} and shape {shape} takes {size} bytes, its data_offsets are {offsets}"
    if offsets[1] > data_size:
        return f"is truncated: it ends at byte {offsets[1]} of the data, the file has {max(data_size, 0)}"
    return ""


def _misplaced(offsets: Mapping[str, list[int]], data_size: int) -> dict[str, str]:
    """Faults of tensors that do not lie one behind the other; the data belongs to tensors without a gap."""
    faults, end, last = {}, 0, ""
    for name, (begin, tensor_end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin != end:
            faults[name] = f"begins at byte {begin} of the data, the tensor before it ends at {end}"
        end, last = tensor_end, name
    if end != data_size and last:
        faults[last] = f"is the last and ends at byte {end} of the data, the file has {data_size}"
    return faults


def _read(path: Path, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Maps one tensor; its pages count as memory only until the array is dropped."""
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    if os.stat(path).st_size < offset + math.prod(shape) * dtype.itemsize:
        raise SparkError(f"{path}: the file ends within tensor {name}")
    return np.memmap(path, dtype, "r", offset, shape or (1,)).reshape(shape)
