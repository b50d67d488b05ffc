"""Checksums of arrays, the same on every mesh: what a checkpoint's arrays are compared with when they are read back.

Stored chunks are not all protected: a changed byte can decode to other numbers without any error. The sums are
computed on the devices, so that they cover the way to the host and to the disk as well.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jaxtyping import Array, UInt32

from spark_jax.shared.pytree import flatten


def checksums(tree: Any) -> dict[str, int]:
    """Computes a number below 2^32 for each array of a tree, by its slash-separated path; equal on all processes.

    Each shape and sharding costs one small program, compiled once; each call one pass over the arrays.
    """
    sums = {name: _compiled(leaf.sharding)(leaf) for name, leaf in flatten(tree).items()}
    return {name: int(value) for name, value in jax.device_get(sums).items()}


@functools.cache
def _compiled(sharding: Sharding) -> Callable[[Array], UInt32[Array, ""]]:
    """On a mesh every process gets the sum; without `out_shardings` XLA may leave it on some device."""
    everywhere = NamedSharding(sharding.mesh, jax.P()) if isinstance(sharding, NamedSharding) else sharding
    return jax.jit(_checksum, out_shardings=everywhere)


def _checksum(array: Array) -> UInt32[Array, ""]:
    """Sum of the elements' bits, each times an odd number that stands for its place, modulo 2^32.

    Sums of integers do not depend on their order, so that every division over devices gives the same one.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    factor, stride = jnp.ones((), jnp.uint32), 2
    for axis in reversed(range(array.ndim)):
        factor += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * np.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.sum(bits * factor, dtype=jnp.uint32)
