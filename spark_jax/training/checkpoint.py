"""Checkpoints of training runs: state and data position in one save, written while the training goes on.

Resume rules, in this order:
1. the run's folder holds checkpoints: state and data position come from the newest one whose arrays are whole; newer
   ones, whose arrays cannot be read or have another checksum, are set aside in the folder `damaged` and named in the
   log. Whatever else keeps a checkpoint from being read (a position of the data, permissions, memory) is an error, and
   nothing is moved;
2. the configuration names parts to start from: their parameters replace the fresh ones;
3. otherwise everything is fresh.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from spark_jax.errors import SparkError, one_line
from spark_jax.model_directory.parameters import differences
from spark_jax.shared import distributed
from spark_jax.shared.pytree import flatten
from spark_jax.training.checksum import checksums
from spark_jax.training.config import LoopConfig
from spark_jax.training.data_position import DataPosition, read_position

DAMAGED = "damaged"  # beside the folder of checkpoints
_ALL_DAMAGED = "all checkpoints are damaged, move the folder away to begin anew"


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/{state, data}`: the newest ones and the best ones.

    A save returns when the arrays are on the host; from then on the state can be donated, and files are written in the
    background under a temporary name. What goes wrong there is raised by the next call of `save`, `wait` or `close`.
    All processes of a run make all calls; each writes and reads its own shards.

    Args:
      directory: shared by all processes.
      keep: newest checkpoints that stay.
      keep_best: checkpoints with the least `best_metric` that stay besides; 0: none.
      best_metric: name in the metrics given to `save`.

    Raises:
      SparkError: the directory cannot be written.
    """

    def __init__(self, directory: str | Path, keep: int = 2, keep_best: int = 0, best_metric: str = "loss"):
        self._directory, self._keep_best, self._best_metric = Path(directory).absolute(), keep_best, best_metric
        preservation = ocp.training.preservation_policies
        policies = [preservation.LatestN(keep)]
        if keep_best > 0:
            # The end of the sorted list stays: in descending order that is the least value. Without an evaluation at
            # its step a checkpoint is no candidate.
            policies.append(
                preservation.BestN(
                    get_metric_fn=self._value, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False
                )
            )
        self._quiet = lambda record: not _told_here(record)
        logging.getLogger("absl").addFilter(self._quiet)
        self._aside = self._set_aside(dict.fromkeys(_unreadable(self._directory), "its description cannot be read"))
        try:
            self._checkpointer = ocp.training.Checkpointer(
                str(self._directory),
                preservation_policy=preservation.AnyPreservationPolicy(policies),
                # Process 0 lists them: what it has just moved, another host may still see (NFS).
                step_name_format=ocp.path.step.standard_name_format(single_host_load_and_broadcast=True),
                cleanup_tmp_directories=True,  # of saves that a kill has cut short
            )
        except OSError as error:
            raise SparkError(f"{directory}: cannot be used for checkpoints ({_brief(error)})") from error
        self._saving: tuple[int, Any] | None = None

    @classmethod
    def of_run(cls, output: Path, config: LoopConfig) -> "Checkpoints":
        """Returns those in a run's output folder."""
        return cls(output / "checkpoints", config.keep_checkpoints, config.keep_best, config.best_metric)

    @property
    def latest_step(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, the one being written included."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and metric of the best checkpoint."""
        known = [(self._value(each.metrics), each.step) for each in self._checkpointer.checkpoints if each.metrics]
        value, step = min(known, default=(math.inf, None))
        return None if step is None or value == math.inf else (step, value)

    def would_keep(self, metrics: Mapping[str, float]) -> bool:
        """Returns whether a checkpoint with these metrics would be one of the best."""
        known = [self._value(each.metrics) for each in self._checkpointer.checkpoints if each.metrics]
        return sum(value <= self._value(metrics) for value in known) < self._keep_best

    def save(self, step: int, state: Any, data: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Saves the state (any tree of arrays) and the position of the data (a grain iterator) after `step` steps.

        Args:
          metrics: of an evaluation of this very state.

        Raises:
          SparkError: this save or the one before could not be written.
        """
        self.wait()
        if self.latest_step == step:
            return
        value = None if metrics is None else metrics.get(self._best_metric)
        try:
            response = self._checkpointer.save_checkpointables_async(
                step,
                {"state": state, "data": DataPosition(data)},
                force=True,
                metrics=None if value is None else {self._best_metric: float(value)},
                custom_metadata={"checksums": checksums(state)},
            )
        except (OSError, ValueError) as error:
            raise self._not_written(step, error) from error
        self._saving = (step, response)

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
          SparkError: it could not be written; the checkpoints before it are as they were.
        """
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        errors = []
        for finish in (response.result, self._checkpointer.wait):  # Orbax tells an error once in each thread
            try:
                finish()
            except Exception as error:  # tensorstore and Orbax raise many types
                errors.append(error)
        if errors:
            raise self._not_written(step, errors[0]) from errors[0]

    def restore(self, abstract_state: Any, data: Any) -> Any:
        """Reads the newest state that is whole into the shardings of `abstract_state`.

        Args:
          data: moves to the checkpoint's position.

        Raises:
          SparkError: there is none; all are damaged; the tree is not the one asked for; or the newest whole one cannot
            be read for another reason, such as the position of the data or permissions.
        """
        if self.latest_step is None:
            raise SparkError(f"{self._directory}: holds no checkpoint")
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            state, problem = self._load(step, abstract_state)
            if problem is None:
                break
            damaged[step] = problem
        else:
            listed = "; ".join(f"{step}: {problem}" for step, problem in damaged.items())
            raise SparkError(f"{self._directory}: {_ALL_DAMAGED} ({listed})")
        self._move_data(step, data)
        if damaged:
            self._aside += self._set_aside(damaged)
            self._checkpointer.reload()
        for line in self._aside:
            distributed.log(f"{line}; going on from {self._directory / str(step)}")
        return state

    def close(self) -> None:
        """Waits for the last save and lets go of all threads.

        Raises:
          SparkError: the last save could not be written.
        """
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            logging.getLogger("absl").removeFilter(self._quiet)

    def _load(self, step: int, abstract_state: Any) -> tuple[Any, str | None]:
        """The state of a step, or how its arrays are damaged: all processes come to the same conclusion.

        Raises:
          SparkError: it does not fit, or cannot be read though nothing says that it is damaged.
        """
        folder = self._directory / str(step)
        # Each process reads for itself, without Orbax's barriers: one that fails would leave the others waiting there.
        context = ocp.Context()
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
        with context:
            stored, problem = _attempt(folder, lambda: ocp.metadata(str(folder), checkpointable_name="state"))
            # Orbax counts the loads of a process and the counts have to agree, so none loads unless all do.
            if not distributed.all_processes(problem is None and bool(flatten(stored.metadata))):
                return None, problem or "no description of its arrays"
            if misfits := differences(stored.metadata, abstract_state):
                raise SparkError(f"{folder}: does not fit this configuration ({'; '.join(misfits)[:500]})")
            wanted = {"state": abstract_state}
            loaded, problem = _attempt(folder, lambda: ocp.load_checkpointables(str(folder), wanted))
        if not distributed.all_processes(problem is None):
            return None, problem or "damaged for another process"
        state = loaded["state"]
        expected, found = (stored.custom_metadata or {}).get("checksums", {}), checksums(state)
        changed = [name for name, value in expected.items() if found.get(name) != value]
        return state, f"changed: {', '.join(changed)[:300]}" if changed else None

    def _move_data(self, step: int, data: Any) -> None:
        """Moves the data to a step's position; the arrays are known to be whole.

        Raises:
          SparkError: on all processes, if one of them cannot.
        """
        folder, problem = self._directory / str(step), None
        try:
            data.set_state(read_position(folder / "data"))
        except Exception as error:  # grain and the plans of the data raise many types
            problem = _brief(error)
        if not distributed.all_processes(problem is None):
            raise SparkError(
                f"{folder / 'data'}: the data cannot go on from this position ({problem or 'on another process'}); the "
                f"arrays are whole and nothing is moved, expected the same data (or move {folder} away to go on from "
                "the checkpoint before)"
            )

    def _set_aside(self, damaged: Mapping[int, str]) -> list[str]:
        """Moves checkpoints out of the way: their files may still be of use, their steps will be made anew.

        Returns:
          What was done, a line each.
        """
        lines = []
        for step, problem in damaged.items():
            source, target = self._directory / str(step), self._directory.parent / DAMAGED / str(step)
            while target.exists():
                target = target.with_name(f"{target.name}_")
            if distributed.is_primary():
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(source, target)
                except OSError as error:
                    raise SparkError(f"{source}: damaged ({problem}), and cannot be moved ({_brief(error)})") from error
            lines.append(f"{source}: damaged checkpoint ({problem}), set aside as {target}")
        distributed.barrier("damaged checkpoints are set aside")
        return lines

    def _not_written(self, step: int, error: Exception) -> SparkError:
        return SparkError(f"{self._directory / str(step)}: checkpoint cannot be written ({_brief(error)})")

    def _value(self, metrics: Mapping[str, float]) -> float:
        value = float(metrics.get(self._best_metric, math.inf))
        return value if math.isfinite(value) else math.inf


def check_not_past(output: Path, steps: int) -> None:
    """Refuses to go on with a run that has made more steps than are asked for.

    Every process looks for itself, so that all of them end, in whatever order they come.

    Args:
      output: folder of the run.
      steps: `loop.steps`.

    Raises:
      SparkError: a checkpoint is of a later step.
    """
    folder = output / "checkpoints"
    found = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    latest = max(found, default=0)
    if latest > steps:
        raise SparkError(
            f"{output}: the run is at step {latest}, loop.steps is {steps}; nothing is changed, expected at least "
            f"{latest} steps or another folder"
        )


def _unreadable(directory: Path) -> list[int]:
    """Steps of the checkpoints whose descriptions are missing or no JSON: Orbax could not even list the others.

    Raises:
      SparkError: all are; or a file cannot be read for another reason, or is none of the arrays' description.
    """
    folders = [path for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []
    all_steps, found = distributed.broadcast_from_primary([int(folder.name) for folder in folders]), []
    problem = ""
    for folder in folders:
        try:
            json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        except (FileNotFoundError, ValueError):
            found.append(int(folder.name))
            continue
        except OSError as error:
            problem = f"{folder}: checkpoint cannot be read ({_brief(error)}); nothing is moved"
        for path in folder.glob("metrics/metrics"):
            try:
                json.loads(path.read_text())
            except (OSError, ValueError) as error:
                reason = f"the metrics cannot be read ({_brief(error)})"
                problem = f"{path}: {reason}; nothing is moved, remove {path.parent} to go on without them"
    if any(distributed.broadcast_from_primary([int(bool(problem))])):
        raise SparkError(problem or f"{directory}: cannot be read by process 0; nothing is moved")
    found = distributed.broadcast_from_primary(found)
    if found and len(found) == len(all_steps):
        raise SparkError(f"{directory}: {_ALL_DAMAGED} (no description of {sorted(found)} can be read)")
    return sorted(found, reverse=True)


def abstract(tree: Any, shardings: Any) -> Any:
    """Returns shapes, types and shardings of a tree, for `restore` and `read_part`."""
    return jax.tree.map(
        lambda leaf, placement: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), tree, shardings
    )


# Of tensorstore and XLA: what says nothing about the files.
_NO_DAMAGE = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "ABORTED",
)


def _attempt(folder: Path, read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What it gives, or how the files are damaged: Orbax and tensorstore raise many types for that.

    Raises:
      SparkError: on all processes, if one of them cannot read though the files may be whole.
    """
    value, error = None, None
    try:
        value = read()
    except Exception as caught:
        error = caught
    if not distributed.all_processes(error is None or _is_damage(error)):
        reason = _brief(error) if error is not None else "on another process"
        raise SparkError(f"{folder}: checkpoint cannot be read ({reason}); nothing is moved") from error
    return value, None if error is None else _brief(error)


def _is_damage(error: BaseException) -> bool:
    """Whether an error may mean that files are missing or hold something else: not permissions, memory or time."""
    if isinstance(error, MemoryError | TimeoutError):
        return False
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return error.errno is None
    text = str(error)
    if any(mark in text for mark in _NO_DAMAGE) or "Permission denied" in text:
        return False
    return error.__cause__ is None or _is_damage(error.__cause__)


def _told_here(record: logging.LogRecord) -> bool:
    """Whether Orbax's threads log what the calls above raise or tell in a line."""
    return record.exc_info is not None or "Failed to get metadata" in record.getMessage()


def _brief(error: BaseException) -> str:
    """In one line; of a long one both ends, since the reason comes first or last."""
    text = one_line(error) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:100]} … {text[-190:]}"
