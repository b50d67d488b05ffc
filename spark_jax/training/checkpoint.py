"""Checkpoints of training runs (state and data position in one save) and parameter trees of model parts.

Resume rules, in this order:
1. the run's folder holds a checkpoint: state and data position come from the newest one;
2. the configuration names parts to start from: their parameters replace the fresh ones;
3. otherwise everything is fresh.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from spark_jax.errors import SparkError


class Checkpoints:
    """The checkpoints of one run: `directory/<step>/{state, data}`, the newest `keep` of them.

    Saves are complete or absent (Orbax writes under a temporary name), and finished when `save` returns: the
    state is donated to the next step, so its buffers cannot be read behind the loop's back.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self._checkpointer = ocp.training.Checkpointer(
            str(Path(directory).absolute()),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any, data: Any) -> None:
        """Saves the state (any tree of arrays) and the data iterator (grain) after `step` steps."""
        if self.latest_step != step:
            self._checkpointer.save_checkpointables(step, {"state": state, "data": data}, force=True)

    def restore(self, abstract_state: Any, data: Any) -> Any:
        """The newest state, placed as `abstract_state` (with shardings) says; `data` moves to its position.

        Raises:
          SparkError: there is none, or its tree is not the one asked for.
        """
        if self.latest_step is None:
            raise SparkError(f"{self._checkpointer.directory}: holds no checkpoint")
        try:
            loaded = self._checkpointer.load_checkpointables(None, {"state": abstract_state, "data": data})
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:500]
            where = f"{self._checkpointer.directory}/{self.latest_step}"
            raise SparkError(f"{where}: does not fit this configuration ({reason})") from error
        return loaded["state"]

    def close(self) -> None:
        self._checkpointer.close()


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, types and shardings of a tree, for `restore` and `load_params`."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
    )


def save_params(directory: str | Path, params: Any) -> None:
    """Writes a plain tree of arrays as an Orbax folder; an older one of that name is replaced in one step."""
    target = Path(directory).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
    ocp.save(str(fresh), params, overwrite=True)
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        os.replace(target, old)
        os.replace(fresh, target)
        shutil.rmtree(old)
    else:
        os.replace(fresh, target)


def load_params(directory: str | Path, abstract_params: Any = None) -> Any:
    """Reads a tree written by `save_params`, or the parameters of a part of a model directory.

    Args:
      directory: its folder; one of a model directory, `DIR/params/<part>`, has the collection "params" on top.
      abstract_params: the expected tree (`jax.ShapeDtypeStruct`, with or without shardings); None: as stored.

    Raises:
      SparkError: the folder is missing, or a tensor is missing, extra or misshapen (all are listed).
    """
    folder = Path(directory).absolute()
    if not folder.is_dir():
        raise SparkError(f"{directory}: no such parameter folder")
    try:
        stored = ocp.metadata(str(folder)).metadata
    except Exception as error:  # Orbax raises many kinds for a damaged folder
        reason = " ".join(str(error).split())[:300]
        raise SparkError(f"{directory}: not a parameter folder ({reason})") from error
    inside = abstract_params is not None and stored.keys() == {"params"} and "params" not in abstract_params
    if inside:
        stored = stored["params"]
    if abstract_params is not None:
        have, want = _shapes(stored), _shapes(abstract_params)
        problems = [f"missing {name} {shape}" for name, shape in want.items() if name not in have]
        problems += [f"extra {name} {shape}" for name, shape in have.items() if name not in want]
        problems += [
            f"{name} is {have[name]}, expected {shape}"
            for name, shape in want.items() if name in have and have[name] != shape
        ]
        if problems:
            raise SparkError(f"{directory}: " + "; ".join(problems))
    # Orbax would otherwise place arrays where they lay when they were saved.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if abstract_params is None:
        targets, places = stored, jax.tree.map(lambda leaf: here, stored)
    else:
        targets = abstract_params
        places = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None) or here, targets)
    try:
        wanted = abstract(targets, places)
        return ocp.load(str(folder), {"params": wanted})["params"] if inside else ocp.load(str(folder), wanted)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise SparkError(f"{directory}: cannot be read ({reason})") from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    return {name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
