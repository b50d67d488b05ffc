"""Tensors of a weight file, read one at a time: what a reader gives to the conversion engine."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from spark_jax.errors import SparkError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}

_SLICE = 1 << 20  # values looked at together: the temporaries stay in the processor's cache


@dataclasses.dataclass(frozen=True)
class SourceTensor:
    """One tensor of a file; its values are read when asked for, so that a file never sits in memory whole.

    Attributes:
      shape, dtype: as the file says.
      read: gives the values; raises a SparkError where the file is damaged there.
      fault: what the file's own description gets wrong about it ("" is nothing); its values cannot be read then.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    fault: str = ""


def faulty_tensor(path: Path, name: str, fault: str) -> SourceTensor:
    """Returns a tensor of a file whose description is wrong; `fault` follows its name in messages."""

    def read() -> np.ndarray:
        raise SparkError(f"{path}: {name} {fault}")

    return SourceTensor((), np.dtype(np.float32), read, fault)


def is_float(dtype: np.dtype) -> bool:
    """Returns whether a type is one of floating-point numbers; numpy alone does not count bfloat16."""
    return dtype == BFLOAT16 or np.issubdtype(dtype, np.floating)


def is_finite(values: np.ndarray) -> bool:
    """Returns whether no value is NaN or infinite."""
    flat = values.reshape(-1)
    slices = (flat[start : start + _SLICE] for start in range(0, flat.size, _SLICE))
    # numpy has a fast test for float32 only; a shorter type's infinity stays one.
    return all(np.isfinite(part.astype(np.float32) if part.itemsize < 4 else part).all() for part in slices)
