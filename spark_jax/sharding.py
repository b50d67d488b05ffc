"""The device mesh, the one table of logical axes, and the shardings of train states, batches, and activations.

Models name the axes of their parameters (`nn.with_logical_partitioning`) and of a few activations (`constrain`,
`per_device`); `RULES` maps each name to mesh axes. The shardings of a whole train state, with its optimizer, are
resolved once over `eval_shape`. Activations find the mesh in the context in which `under_mesh` traces a function;
without one (inference, tests of a single device) nothing is divided.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array

from spark_jax.errors import SparkError, one_line

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
MESH_AXES = (DATA, FSDP, TENSOR)

# Logical axis → mesh axis (None: not divided). Batches are divided over data and fsdp.
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


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with the axes (data, fsdp, tensor).

    Args:
      data: number of devices on the data axis; -1 takes all that the other axes leave, so that every device is used.
      fsdp: number of devices over which parameters and batches are divided.
      tensor: number of devices over which heads, hidden units, and vocabulary are divided.
      devices: devices to use; None: the first `data·fsdp·tensor` of all.

    Raises:
      SparkError: the sizes do not fit the number of devices or the way in which they are connected.
    """
    available = list(jax.devices() if devices is None else devices)
    if data == -1 and min(fsdp, tensor) >= 1:
        count = len(available)
        data, left = divmod(count, fsdp * tensor)
        if left:
            fitting = ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
            raise SparkError(
                f"mesh: {count} devices are no multiple of fsdp {fsdp} · tensor {tensor} = {fsdp * tensor} (data is "
                f"-1); expected a product that divides them, one of {fitting}"
                + (f", or data {data} to leave {left} of them out" if data else "")
            )
    sizes = (data, fsdp, tensor)
    if min(sizes) < 1 or math.prod(sizes) > len(available):
        raise SparkError(f"mesh (data, fsdp, tensor) = {sizes} does not fit {len(available)} devices")
    chosen = available[: math.prod(sizes)]
    # On GPUs `slice_index` counts nodes; chips of a topology with one slice (`spark-jax plan`) do not have it.
    slices = len({getattr(device, "slice_index", 0) for device in chosen}) if chosen[0].platform == "tpu" else 1
    if data % slices:
        raise SparkError(f"mesh: data is {data}, expected a multiple of the {slices} slices, which data goes over")
    try:
        # As `jax.make_mesh`, which cannot divide an axis of the interconnect (fsdp of 4 on 16 × 16 chips).
        if slices == 1:
            grid = mesh_utils.create_device_mesh(sizes, chosen, allow_split_physical_axes=True)
        else:
            grid = mesh_utils.create_hybrid_device_mesh(
                (data // slices, fsdp, tensor), (slices, 1, 1), chosen, allow_split_physical_axes=True
            )
    except (AssertionError, NotImplementedError, ValueError) as error:  # chips that do not form a block
        reason = one_line(error, 300)
        raise SparkError(f"mesh (data, fsdp, tensor) = {sizes} does not fit these devices ({reason})") from error
    # Linen's logical boxes need Auto axes.
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def unbox(tree: Any) -> Any:
    """Replaces Linen's boxes by their arrays, without sharding constraints."""
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(
        lambda leaf: (
            leaf.unbox(apply_constraint=False)
            if isinstance(leaf, nn.Partitioned)
            else (leaf.unbox() if is_box(leaf) else leaf)
        ),
        tree,
        is_leaf=is_box,
    )


def tree_shardings(mesh: Mesh, abstract: Any, rules: Mapping[str, Any] = RULES) -> Any:
    """Returns the shardings of an abstract tree with boxes, in the structure of the tree without boxes.

    Leaves without a box (step counters, statistics) are replicated.

    Raises:
      SparkError: a logical axis is not in the table, two axes of one array are on the same mesh axis, or a size is not
        divisible by its mesh axes; the message lists all problems.
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
            # An axis of size 1 (the last convolution of a discriminator) cannot be divided.
            target = None if name is None or size == 1 else rules.get(name)
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
    """Returns the sharding of every array of a batch: its first axis over data and fsdp."""
    return NamedSharding(mesh, jax.P((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device has whole."""
    return NamedSharding(mesh, jax.P())


def spec(mesh: Mesh | jax.sharding.AbstractMesh, *names: str | None) -> jax.P:
    """Returns the partition of an array with these logical axes, without mesh axes of a single device."""
    return jax.P(*(None if name is None else _axes(mesh, name) or None for name in names))


def _axes(mesh: Mesh | jax.sharding.AbstractMesh, name: str) -> tuple[str, ...]:
    """Returns the mesh axes that divide a logical axis."""
    target = RULES[name]
    axes = (target,) if isinstance(target, str) else target or ()
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def under_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Returns the function, traced with the mesh in context, so that `constrain` and `per_device` act in it."""

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return traced


def device_axes(name: str) -> tuple[str, ...]:
    """Returns the mesh axes of a collective along a logical axis in a `per_device` function; () if not divided."""
    mesh = jax.sharding.get_abstract_mesh()
    return _axes(mesh, name) if mesh.manual_axes else ()


def constrain(x: Array, *names: str | None) -> Array:
    """Lays x out over the context's mesh by its logical axes; returns x itself if there is no mesh."""
    mesh = _context()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, spec(mesh, *names))


def per_device(
    function: Callable[..., Any],
    inputs: Sequence[tuple[str | None, ...]],
    outputs: Any,
    check_replicas: bool = False,
) -> Callable[..., Any]:
    """Returns the function as each device of the context's mesh runs it on its own part of the arrays.

    It serves programs that XLA cannot divide (kernels) and loops whose collectives must stay outside. Without a mesh
    the function is returned as it is.

    Args:
      function: a function of arrays, which gets the part of each array that is on the device.
      inputs: logical axes of each argument.
      outputs: logical axes of the result, or a tuple of them for a tuple of results.
      check_replicas: whether JAX must prove that undivided results are the same on all devices, so that gradients
        through the function need fewer sums. Kernels do not carry enough information for this.
    """
    mesh = _context()
    if mesh is None:
        return function
    several = bool(outputs) and isinstance(outputs[0], tuple)
    return jax.shard_map(
        function,
        in_specs=tuple(spec(mesh, *names) for names in inputs),
        out_specs=tuple(spec(mesh, *names) for names in outputs) if several else spec(mesh, *outputs),
        check_vma=check_replicas,
    )


def _context() -> jax.sharding.AbstractMesh | None:
    """Returns the mesh in context; None if it has one device, or if the function already runs per device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def initialize(mesh: Mesh, init: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Runs `init(*args)` under jit with divided results, so that no device ever holds the whole tree.

    Args:
      mesh: the devices.
      init: a function that returns a tree with Linen's boxes.

    Returns:
      The tree without boxes, and its shardings.
    """
    shardings = tree_shardings(mesh, jax.eval_shape(init, *args))
    # It runs once: on CPUs, LLVM would spend most of the time on optimizing hundreds of small random generators.
    quick = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    make = jax.jit(lambda *inputs: unbox(init(*inputs)), out_shardings=shardings, compiler_options=quick)
    return make(*args), shardings


def compiler_options(mesh: Mesh, cpu_block_mb: int | None) -> dict[str, int] | None:
    """Returns the compiler options of `jit_step` and `jit_eval`: on CPUs, the size of blocks of temporaries.

    Args:
      mesh: the devices.
      cpu_block_mb: size in megabytes; None: one block for all, which is XLA's default.

    Raises:
      SparkError: the size is not positive.
    """
    if cpu_block_mb is None or mesh.devices.flat[0].platform != "cpu":
        return None
    if cpu_block_mb < 1:
        raise SparkError(f"mesh.cpu_block_mb is {cpu_block_mb}, expected at least 1")
    return {"xla_multiheap_size_constraint_per_heap": cpu_block_mb * 10**6}


def jit_step(
    step: Callable[[Any, Any], tuple[Any, Any]],
    mesh: Mesh,
    state_shardings: Any,
    options: Mapping[str, int] | None = None,
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Compiles a train step `(state, batch) → (state, metrics)` with explicit shardings; the state is donated.

    Args:
      step: the step.
      mesh: the devices.
      state_shardings: shardings of the train state.
      options: the result of `compiler_options`.
    """
    return jax.jit(
        under_mesh(step, mesh),
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=options,
    )


def jit_eval(
    evaluate: Callable[[Any, Any], Any], mesh: Mesh, params_shardings: Any, options: Mapping[str, int] | None = None
) -> Callable[[Any, Any], Any]:
    """Compiles an evaluation step `(params, batch) → metrics` with explicit shardings; nothing is donated."""
    return jax.jit(
        under_mesh(evaluate, mesh),
        in_shardings=(params_shardings, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=options,
    )


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices; returns global arrays, divided over data and fsdp."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Returns which rows of each batch this process loads, as (index, count): every `count`-th row from `index` on.

    Processes whose devices have the same position on data and fsdp divide the tensor axis and load the same rows.

    Raises:
      SparkError: processes share some positions on data and fsdp but not all.
    """
    positions: dict[int, set[int]] = {}
    rows = mesh.devices.reshape(mesh.shape[DATA] * mesh.shape[FSDP], mesh.shape[TENSOR])
    for position, devices in enumerate(rows):
        for device in devices:
            positions.setdefault(device.process_index, set()).add(position)
    shares = sorted({tuple(sorted(own)) for own in positions.values()})
    if sum(map(len, shares)) != len(rows) or len({len(share) for share in shares}) > 1:
        raise SparkError(
            f"mesh {dict(mesh.shape)}: {len(positions)} processes cannot divide the rows of a batch evenly"
        )
    return shares.index(tuple(sorted(positions[jax.process_index()]))), len(shares)


def put_whole_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts batches that every process has whole on all devices; returns global arrays, divided over data and fsdp."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(value.shape, sharding, lambda index, value=value: value[index])
        for name, value in batch.items()
    }
