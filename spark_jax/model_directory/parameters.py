"""The arrays of a model's parts: their names, shapes, types and places on devices, from the configuration alone."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax.sharding import Mesh

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError, one_line
from spark_jax.qwen2.model import Qwen2
from spark_jax.sharding import tree_shardings, unbox
from spark_jax.shared.pytree import flatten
from spark_jax.wav2vec2.model import Wav2Vec2

PARTS = ("bicodec", "wav2vec2", "llm")

# Leaves that a shorter storage type spares: their precision costs nothing, and norms need it.
_KEEP_FLOAT32 = frozenset({"scale", "bias", "gamma", "alpha", "g", "kernel_g", "mean", "var", "cluster_size"})


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
        keep = path[-1].key in _KEEP_FLOAT32
        return leaf if keep else jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(retype, tree)


def cast_weights(tree: Any, dtype: Any) -> Any:
    """The tree (on the host) with its weight matrices in `dtype`; None: as it is."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), tree, with_weight_dtype(tree, dtype))


def differences(found: Any, expected: Any) -> list[str]:
    """One line for every tensor of a tree that another tree lacks, or that has another shape there."""
    have, want = ({name: tuple(leaf.shape) for name, leaf in flatten(tree).items()} for tree in (found, expected))
    problems = [f"missing {name} {list(shape)}" for name, shape in want.items() if name not in have]
    problems += [f"extra {name} {list(shape)}" for name, shape in have.items() if name not in want]
    return problems + [
        f"misshapen {name} {list(have[name])}, expected {list(shape)}"
        for name, shape in want.items()
        if name in have and have[name] != shape
    ]


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
        raise SparkError(f"{part}: the sizes do not fit together ({one_line(error, 300)})") from error
