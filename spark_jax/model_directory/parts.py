"""The arrays of one part of a model as an Orbax folder, written and read a few at a time.

Large arrays are stored in chunks, so that a host of a mesh reads the chunks that its shards lie in and nothing else.
All processes of a run make these calls; each writes and reads its own shards.
"""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from spark_jax.errors import SparkError, one_line
from spark_jax.shared import distributed
from spark_jax.shared.files import cannot_write, write_text
from spark_jax.shared.pytree import flatten, unflatten

# Orbax divides the longest axis until a chunk is this small: only then are the embedding's short axis, 896, and so
# the shards along it, divided too. Measured on 300 MB, chunks of 64 KiB to 1 MiB load in the same time.
CHUNK_BYTES = 128 << 10
_GROUP_BYTES = 64 << 20  # arrays up to this size together are written or read at once


def write_arrays(folder: Path, leaves: Iterable[tuple[str, Any]]) -> None:
    """Writes the arrays of one part (numpy or JAX), given by their slash-separated paths.

    They are taken from the stream a few at a time, so that memory holds little more than the largest of them.

    Args:
      folder: must not exist.
      leaves: path and values of each array, collections on top.

    Raises:
      SparkError: the folder cannot be written.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False  # it takes most of the time and saves a twentieth
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    context.memory.deepcopy_host_arrays = False  # nothing changes them while they are written
    path = str(folder.absolute())
    with context, _without_chunk_warnings():
        for group in _groups(leaves):
            with _written(folder):
                ocp.partial.save(path, unflatten(group))
            del group
        with _written(folder):
            ocp.partial.finalize(path)
    # Orbax marks a complete save by this file and writes the temporary folder's absolute path into it: a path of the
    # machine that made the model, which soon names nothing. Only the file's presence counts.
    marker = folder / "commit_success.txt"
    if distributed.is_primary() and marker.exists():
        write_text(marker, "Checkpoint commit was successful\n")
    distributed.barrier(f"{folder} is complete")


def stream_arrays(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of one part as they are stored, by their paths, as few at a time as `write_arrays`.

    Raises:
      SparkError: the folder is missing or damaged.
    """
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    for group in _groups(flatten(stored_arrays(folder)).items()):
        wanted = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host) for path, leaf in group.items()}
        with context:
            loaded = flatten(read_arrays(folder, unflatten(wanted)))
        while loaded:
            path, values = loaded.popitem()
            yield path, np.asarray(values)
            del values


def stored_arrays(folder: Path) -> Any:
    """Returns the tree of shapes and types of a stored part, without its values; empty where the part is missing.

    Raises:
      SparkError: the folder is damaged.
    """
    if not folder.is_dir():
        return {}
    try:
        stored = ocp.metadata(str(folder.absolute())).metadata
    except Exception as error:  # Orbax and tensorstore raise many types for a damaged folder
        raise _damaged(folder, error) from error
    if stored is None:  # Orbax's other answer to unreadable metadata
        raise SparkError(f"{folder}: cannot be read, its metadata is damaged")
    # Without the shardings: those of a save may be of devices that are not here.
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored)


def read_arrays(folder: Path, wanted: Any) -> Any:
    """Returns a tree of `jax.ShapeDtypeStruct` filled with the stored values.

    Args:
      wanted: with the types and shardings of the result; without a sharding an array comes onto the default device.

    Raises:
      SparkError: the folder is damaged.
    """
    # Orbax would otherwise put arrays where they lay when they were saved.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here),
        wanted,
    )
    try:
        return ocp.load(str(folder.absolute()), wanted)
    except Exception as error:  # as for `stored_arrays`
        raise _damaged(folder, error) from error


def _groups(leaves: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """Small leaves together, large ones alone: Orbax has a price for each save and load."""
    group, size = {}, 0
    for path, leaf in leaves:
        group[path] = leaf
        size += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        del leaf  # what the stream gives next must not come on top of it
        if size >= _GROUP_BYTES:
            yield group
            group, size = {}, 0
    if group:
        yield group


def _damaged(folder: Path, error: Exception) -> SparkError:
    return SparkError(f"{folder}: cannot be read, a file is damaged ({one_line(error, 300)})")


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore's are ValueErrors
        raise cannot_write(folder, error) from error


@contextlib.contextmanager
def _without_chunk_warnings() -> Iterator[None]:
    """Orbax suspects chunks below 1 MiB of being slow, once for every array."""
    logger, quiet = logging.getLogger("absl"), lambda record: "target_byte_size" not in record.getMessage()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)
