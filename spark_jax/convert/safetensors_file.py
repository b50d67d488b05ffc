"""Reads a safetensors file lazily, bfloat16 included, without any framework but numpy."""

import functools
import json
import struct
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from spark_jax.convert.tensors import BFLOAT16, SourceTensor
from spark_jax.errors import SparkError

_DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16,
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, SourceTensor]:
    """The tensors of a safetensors file, by name.

    Raises:
      SparkError: the file is missing, truncated, no safetensors file, or holds a type numpy cannot express.
    """
    try:
        # The library checks the header against the file's length: offsets, overlaps, shapes.
        with safe_open(path, framework="np"):
            pass
        with open(path, "rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_size))
    except FileNotFoundError as error:
        raise SparkError(f"{path}: no such file") from error
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise SparkError(f"{path}: not a complete safetensors file ({' '.join(str(error).split())})") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise SparkError(f"{path}: tensor {name} has type {entry['dtype']}; expected one of {list(_DTYPES)}")
        shape = tuple(entry["shape"])
        offset = 8 + header_size + entry["data_offsets"][0]
        tensors[name] = SourceTensor(shape, dtype, functools.partial(_read, path, name, offset, shape, dtype))
    return tensors


def _read(path: Path, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    values = np.empty(shape, dtype)
    with open(path, "rb") as file:
        file.seek(offset)
        if file.readinto(values.reshape(-1).view(np.uint8)) != values.nbytes:
            raise SparkError(f"{path}: the file ends within tensor {name}")
    return values
