"""The device mesh, the one table of logical axes, and the shardings of train states and batches.

Models name the axes of their parameters (`nn.with_logical_partitioning`); `RULES` says on which mesh axis
each name lies. The shardings of a whole train state, optimiser and all, are resolved once over `eval_shape`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from spark_jax.errors import SparkError

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
MESH_AXES = (DATA, FSDP, TENSOR)

# Logical axis → mesh axis (None: not divided). Batches are divided over data and fsdp together.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": (DATA, FSDP),
    "time": None,
    "embed": FSDP,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "head_dim": None,
    "mlp": TENSOR,
    "vocab": TENSOR,
    "layers": None,
    "norm": None,
    "conv_kernel": None,
    "conv_in": None,
    "conv_out": TENSOR,  # not fsdp: it meets "embed" in projections
    "codes": None,
    "code_dim": None,
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Mesh of axes (data, fsdp, tensor).

    Args:
      data: devices on the data axis; -1 takes all that the other axes leave.
      fsdp: devices that parameters and batches are divided over.
      tensor: devices that heads, hidden units and vocabulary are divided over.
      devices: those to use; None: the first `data·fsdp·tensor` of all.

    Raises:
      SparkError: sizes that do not fit the number of devices.
    """
    available = list(jax.devices() if devices is None else devices)
    if data == -1:
        data = max(1, len(available) // (fsdp * tensor))
    sizes = (data, fsdp, tensor)
    if min(sizes) < 1 or math.prod(sizes) > len(available):
        raise SparkError(f"mesh (data, fsdp, tensor) = {sizes} does not fit {len(available)} devices")
    # Auto axes: Linen's logical boxes need them, and jax.make_mesh's default is Explicit since jax 0.9.
    return jax.make_mesh(sizes, MESH_AXES, (AxisType.Auto,) * 3, devices=available[: math.prod(sizes)])


def unbox(tree: Any) -> Any:
    """Plain arrays in place of Linen's boxes, without any sharding constraint."""
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(
        lambda leaf: leaf.unbox(apply_constraint=False) if isinstance(leaf, nn.Partitioned)
        else (leaf.unbox() if is_box(leaf) else leaf),
        tree,
        is_leaf=is_box,
    )


def tree_shardings(mesh: Mesh, abstract: Any, rules: Mapping[str, Any] = RULES) -> Any:
    """Shardings of an abstract (boxed) tree, in the shape of the unboxed tree.

    Unboxed leaves (step counters, statistics) are replicated.

    Raises:
      SparkError: a logical axis that the table lacks, two axes of one array on the same mesh axis, or a size
        that its mesh axes do not divide; all are listed at once.
    """
    problems: list[str] = []

    def resolve(path: Any, leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.Partitioned):
            return NamedSharding(mesh, jax.P())
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        spec, used = [], set()
        for name, size in zip(leaf.names, leaf.value.shape, strict=True):
            if name is not None and name not in rules:
                problems.append(f"{where}: logical axis {name!r} is not in the table")
            target = None if name is None else rules.get(name)
            axes = (target,) if isinstance(target, str) else (target or ())
            if used & set(axes):
                problems.append(f"{where}: axes {leaf.names} meet on mesh axis {sorted(used & set(axes))}")
            used |= set(axes)
            parts = math.prod(mesh.shape[axis] for axis in axes)
            if size % parts:
                problems.append(f"{where}: axis {name!r} of {size} is not divisible by {parts} {axes}")
            spec.append(target)
        if problems:  # reported together below; a specification with a collision cannot even be built
            return NamedSharding(mesh, jax.P())
        return NamedSharding(mesh, jax.P(*spec))

    shardings = jax.tree_util.tree_map_with_path(
        resolve, abstract, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    )
    if problems:
        raise SparkError("sharding: " + "; ".join(dict.fromkeys(problems)))
    return shardings


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Every array of a batch: first axis over data and fsdp."""
    return NamedSharding(mesh, jax.P((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, jax.P())


def initialize(mesh: Mesh, init: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Runs `init(*args)` jitted straight into its shardings; nothing is ever whole on one device.

    Args:
      init: makes a tree, with Linen's boxes.

    Returns:
      The tree without boxes, and its shardings.
    """
    shardings = tree_shardings(mesh, jax.eval_shape(init, *args))
    return jax.jit(lambda *inputs: unbox(init(*inputs)), out_shardings=shardings)(*args), shardings


def jit_step(
    step: Callable[[Any, Any], tuple[Any, Any]], mesh: Mesh, state_shardings: Any
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A train step `(state, batch) → (state, metrics)` with explicit shardings; the state is donated."""

    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )


def jit_eval(
    evaluate: Callable[[Any, Any], Any], mesh: Mesh, params_shardings: Any
) -> Callable[[Any, Any], Any]:
    """An evaluation step `(params, batch) → metrics` jitted with explicit shardings; nothing is donated."""
    return jax.jit(
        evaluate, in_shardings=(params_shardings, batch_sharding(mesh)), out_shardings=replicated(mesh)
    )


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Host arrays (this process's rows) → one global array each, divided over data and fsdp."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Which rows of each batch this process loads, (index, count): every `count`-th, from `index` on.

    The processes that hold devices of the same place on data and fsdp load the same rows, as their devices divide the
    tensor axis.

    Raises:
      SparkError: processes that share some places on data and fsdp but not all.
    """
    places: dict[int, set[int]] = {}
    rows = mesh.devices.reshape(mesh.shape[DATA] * mesh.shape[FSDP], mesh.shape[TENSOR])
    for place, devices in enumerate(rows):
        for device in devices:
            places.setdefault(device.process_index, set()).add(place)
    shares = sorted({tuple(sorted(own)) for own in places.values()})
    if sum(map(len, shares)) != len(rows) or len({len(share) for share in shares}) > 1:
        raise SparkError(f"mesh {dict(mesh.shape)}: {len(places)} processes cannot divide the rows of a batch evenly")
    return shares.index(tuple(sorted(places[jax.process_index()]))), len(shares)


def put_whole_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Host arrays that every process has whole → one global array each, divided over data and fsdp."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(value.shape, sharding, lambda index, value=value: value[index])
        for name, value in batch.items()
    }
