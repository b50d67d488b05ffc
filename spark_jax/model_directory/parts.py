"""The arrays of one part of a model as an Orbax folder, written and read a few at a time.

Large arrays are stored in chunks, so that a host of a mesh reads the chunks that its shards lie in and nothing else.
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
from spark_jax.shared.pytree import flatten, unflatten

# Orbax divides the longest axis until a chunk is this small: only then are the embedding's short axis, 896, and so
# the shards along it, divided too. Measured on 300 MB, chunks of 64 KiB to 1 MiB load in the same time.
CHUNK_BYTES = 128 << 10
_GROUP_BYTES = 64 << 20  # arrays up to this size together are written or read at once


def write_part(folder: Path, leaves: Iterable[tuple[str, Any]]) -> None:
    """Writes the arrays of one part (numpy or JAX), given by their slash-separated paths.

    They are taken from the stream a few at a time, so that memory holds little more than the largest of them.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False  # it takes most of the time and saves a twentieth
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    context.memory.deepcopy_host_arrays = False  # nothing changes them while they are written
    path = str(folder.absolute())
    with context, _without_chunk_warnings():
        for group in _groups(leaves):
            ocp.partial.save(path, unflatten(group))
            del group
        ocp.partial.finalize(path)
    # Orbax marks a complete save by this file and writes the temporary folder's absolute path into it: a path of the
    # machine that made the model, which soon names nothing. Only the file's presence counts.
    marker = folder / "commit_success.txt"
    if marker.exists():
        marker.write_text("Checkpoint commit was successful\n")


def read_leaves(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one part as they are stored, by their paths: the inverse of `write_part`, as little at a time.

    Raises:
      SparkError: the folder is missing or damaged.
    """
    place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    for group in _groups(flatten(stored_part(folder)).items()):
        wanted = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for path, leaf in group.items()}
        with context:
            loaded = flatten(load_part(folder, unflatten(wanted)))
        while loaded:
            path, values = loaded.popitem()
            yield path, np.asarray(values)
            del values


def stored_part(folder: Path) -> Any:
    """Shapes and types of a stored part, without its values; nothing where the part is missing.

    Raises:
      SparkError: the folder is damaged.
    """
    if not folder.is_dir():
        return {}
    try:
        stored = ocp.metadata(str(folder.absolute())).metadata
    except Exception as error:  # Orbax and tensorstore raise many types for a damaged folder
        raise SparkError(f"{folder}: cannot be read, a file is damaged ({one_line(error, 300)})") from error
    if stored is None:  # Orbax's other answer to unreadable metadata
        raise SparkError(f"{folder}: cannot be read, its metadata is damaged")
    return stored


def load_part(folder: Path, wanted: Any) -> Any:
    """A tree of `jax.ShapeDtypeStruct` with shardings, filled with the stored values.

    Raises:
      SparkError: the folder is damaged.
    """
    try:
        return ocp.load(str(folder.absolute()), wanted)
    except Exception as error:  # as for `stored_part`
        raise SparkError(f"{folder}: cannot be read, a file is damaged ({one_line(error, 300)})") from error


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


@contextlib.contextmanager
def _without_chunk_warnings() -> Iterator[None]:
    """Orbax suspects chunks below 1 MiB of being slow, once for every array."""
    logger, quiet = logging.getLogger("absl"), lambda record: "target_byte_size" not in record.getMessage()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)
