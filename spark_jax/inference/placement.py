"""Where the arrays of a loaded model lie: on one device, or divided over a mesh by the table of `sharding`."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.model_directory.parameters import target_variables


def mesh_or_device(mesh: Mesh | None) -> Mesh:
    """Returns the mesh itself; None: one of the default device alone, so that there is one way through the code."""
    return sharding.make_mesh(data=1) if mesh is None else mesh


def on_cpu(mesh: Mesh) -> bool:
    """Returns whether the devices of a mesh are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def on_gpu(mesh: Mesh) -> bool:
    """Returns whether the devices of a mesh are GPUs; "cuda" is what those that are elsewhere say of themselves."""
    return mesh.devices.flat[0].platform in ("gpu", "cuda")


def row_shards(mesh: Mesh) -> int:
    """Returns the number of parts that the rows of a batch are divided into."""
    return mesh.shape[sharding.DATA] * mesh.shape[sharding.FSDP]


def place(variables: Mapping[str, Any], config: SparkConfig, mesh: Mesh) -> dict[str, Any]:
    """Returns parts of a model on the devices of a mesh; arrays that lie there already are not copied.

    Raises:
      SparkError: the mesh does not divide the parts.
    """
    wanted = target_variables(config, tuple(variables), mesh=mesh)
    return {
        part: jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), tree, wanted[part])
        for part, tree in variables.items()
    }


def shardings_of(tree: Any) -> Any:
    """Returns where each array of a tree lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def require(variables: Mapping[str, Any], *parts: str) -> None:
    """Checks that parts of a model are loaded.

    Raises:
      SparkError: one of them is not.
    """
    if missing := [part for part in parts if part not in variables]:
        raise SparkError(f"this needs {' and '.join(missing)}, loaded are only {', '.join(variables)}")
