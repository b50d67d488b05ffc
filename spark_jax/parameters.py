"""The arrays of a model's parts: their shapes, how they lie on disk, and how they are read onto devices.

Each part is one Orbax tree, `DIR/params/<part>`, collections on top. Large arrays are stored in chunks, so that a
host of a mesh reads the chunks that its shards lie in and nothing else.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.qwen2.model import Qwen2
from spark_jax.sharding import tree_shardings, unbox
from spark_jax.wav2vec2.model import Wav2Vec2

PARTS = ("bicodec", "wav2vec2", "llm")
CHUNK_BYTES = 1 << 20  # the smallest that Orbax takes without a warning

# Leaves that a shorter storage type spares: their precision costs nothing, and norms need it.
_SPARED = frozenset({"scale", "bias", "gamma", "alpha", "g", "kernel_g", "mean", "var", "cluster_size"})


def abstract_variables(config: SparkConfig) -> dict[str, Any]:
    """Shapes and float32 types (`jax.ShapeDtypeStruct`) of every array: part → collection → tree.

    Raises:
      SparkError: the configuration's sizes do not fit together.
    """
    return {part: abstract_part(part, getattr(config, part)) for part in PARTS}


def abstract_part(part: str, config: Any) -> Any:
    """`abstract_variables` of one part, from its own configuration."""
    return unbox(_boxed_part(part, config))


def target_variables(
    config: SparkConfig, parts: Sequence[str] = PARTS, llm_dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> dict[str, Any]:
    """`abstract_variables` of some parts as they shall lie in memory: with types and shardings.

    Args:
      config: the whole system's.
      parts: those wanted.
      llm_dtype: type of the LLM's weight matrices; all else is float32.
      mesh: where each array is divided as the table of `spark_jax.sharding` says; None: the default device.

    Raises:
      SparkError: as `abstract_variables`, or the mesh does not divide an axis; all are listed at once.
    """
    boxed = {part: _boxed_part(part, getattr(config, part)) for part in parts}
    wanted = unbox(boxed)
    if "llm" in wanted:
        wanted["llm"] = with_weight_dtype(wanted["llm"], llm_dtype)
    if mesh is None:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: place, wanted)
    else:
        shardings = tree_shardings(mesh, boxed)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), wanted, shardings
    )


def with_weight_dtype(tree: Any, dtype: Any) -> Any:
    """The abstract tree with its weight matrices in `dtype`; norms, biases, statistics … keep theirs."""

    def retype(path, leaf):
        spared = leaf_name(path).rpartition("/")[2] in _SPARED
        return leaf if spared else jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(retype, tree)


def cast_weights(tree: Any, dtype: Any) -> Any:
    """The tree (on the host) with its weight matrices in `dtype`; None: as it is."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), tree, with_weight_dtype(tree, dtype))


def write_part(folder: Path, part: str, variables: Any) -> None:
    """Writes the arrays of one part (numpy or JAX) below a model directory that is being made."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # it takes most of the time and saves a twentieth
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    with context:
        ocp.save(str(folder / "params" / part), variables)
    # Orbax marks a complete save by this file and writes the temporary folder's absolute path into it: a path of the
    # machine that made the model, which soon names nothing. Only the file's presence counts.
    marker = folder / "params" / part / "commit_success.txt"
    if marker.exists():
        marker.write_text("Checkpoint commit was successful\n")


def stored_part(directory: Path, part: str) -> Any:
    """Shapes and types of a stored part, without its values; nothing where the part is missing.

    Raises:
      SparkError: the part's description is damaged.
    """
    folder = directory / "params" / part
    if not folder.is_dir():
        return {}
    try:
        stored = ocp.metadata(str(folder)).metadata
    except Exception as error:  # Orbax and tensorstore raise many types for a damaged folder
        raise SparkError(f"{folder}: cannot be read, a file is damaged ({_brief(error)})") from error
    if stored is None:  # Orbax's other answer to unreadable metadata
        raise SparkError(f"{folder}: cannot be read, its metadata is damaged")
    return stored


def read_part(directory: Path, part: str, wanted: Any) -> Any:
    """The arrays of a stored part, with the types and shardings of `wanted` (see `target_variables`).

    Raises:
      SparkError: a file is damaged.
    """
    folder = directory / "params" / part
    try:
        return ocp.load(str(folder), wanted)
    except Exception as error:  # as above
        raise SparkError(f"{folder}: cannot be read, a file is damaged ({_brief(error)})") from error


def differences(found: Any, expected: Any) -> list[str]:
    """One line for every tensor of a tree that another tree lacks, or that has another shape there."""
    have, want = _shapes(found), _shapes(expected)
    problems = [f"missing {name} {list(shape)}" for name, shape in want.items() if name not in have]
    problems += [f"extra {name} {list(shape)}" for name, shape in have.items() if name not in want]
    return problems + [
        f"misshapen {name} {list(have[name])}, expected {list(shape)}"
        for name, shape in want.items() if name in have and have[name] != shape
    ]  # fmt: skip


def leaf_name(path: Any) -> str:
    """A leaf's path in a tree, with slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@functools.lru_cache(maxsize=16)
def _boxed_part(part: str, config: Any) -> Any:
    """Shapes of a part in Linen's boxes, which name the axes. Tracing a codec takes a second: kept."""
    if part == "bicodec":
        frames = 8 * math.prod(config.encoder.sample_ratios)
        features = (1, frames, config.encoder.input_channels)
        module, inputs = BiCodec(config), [features, (1, 2 * config.mel_params.n_fft)]
        arguments = {"train": False}
    elif part == "wav2vec2":
        module, inputs, arguments = Wav2Vec2(config), [(1, 2 * math.prod(config.conv_stride) * 10)], {}
    else:
        module, inputs, arguments = Qwen2(config), [(1, 2)], {}
    dtype = jnp.int32 if part == "llm" else jnp.float32
    try:
        return jax.eval_shape(
            lambda: module.init(jax.random.key(0), *(jnp.zeros(shape, dtype) for shape in inputs), **arguments)
        )
    except (TypeError, ValueError, ArithmeticError, FlaxError) as error:
        raise SparkError(f"{part}: the sizes do not fit together ({_brief(error)})") from error


def _shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {leaf_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
