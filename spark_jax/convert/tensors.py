"""Tensors of a weight file, read one at a time: what a reader hands to the conversion engine."""

import dataclasses
from collections.abc import Callable

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class SourceTensor:
    """One tensor of a file; its values are read when asked for, so that a file never sits in memory whole.

    Plain reads, not memory maps: mapped pages count as resident memory, and a file that shrinks under a map
    kills the process instead of raising.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
