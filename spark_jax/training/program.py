"""What a training compiles, made from its configuration alone: for its run, and for `spark-jax plan`.

A program holds no arrays. A run executes it on the devices that are there; `spark-jax plan` compiles the same one for
devices that are elsewhere.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.training.config import LoopConfig, MeshConfig
from spark_jax.training.state import TrainState

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
Schedule = Callable[[int], Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """A training without its data.

    Attributes:
      mesh: the devices.
      init: makes the fresh state with Linen's boxes, for `Run.initialize_or_restore`.
      step: (state, batch) → (state, metrics), not jitted: the step that most of the run consists of.
      evaluation: (state, batch) → values of one validation batch, not jitted.
      batch: shapes and types of a step's global batch.
      rate: the metric that counts work (tokens, audio_seconds); it is also reported per second.
      schedules: learning rates by the name to report them under, as functions of the number of updates made.
      early_step: what stands for `step` before step number `switch_at`, counted from 0; None: nothing does.
      options: for the compiler, `sharding.compiler_options`.
    """

    mesh: Mesh
    init: Callable[[], TrainState]
    step: Step
    evaluation: Callable[[TrainState, Any], Any]
    batch: Mapping[str, jax.ShapeDtypeStruct]
    rate: str | None = None
    schedules: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
    early_step: Step | None = None
    switch_at: int = 0
    options: Mapping[str, int] | None = None

    def abstract_state(self) -> TrainState:
        """Returns shapes, types and shardings of the state."""
        boxed = jax.eval_shape(self.init)
        return jax.tree.map(
            lambda leaf, placement: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement),
            sharding.unbox(boxed),
            sharding.tree_shardings(self.mesh, boxed),
        )

    def check_best_metric(self, loop: LoopConfig, metrics: Callable[[Any], Mapping[str, Any]] = dict) -> None:
        """Checks the name of the best metric, before the first step and not at the first evaluation.

        Args:
          metrics: what the validation makes of `evaluation`'s values.

        Raises:
          SparkError: `loop.best_metric` is none of them.
        """
        if not loop.keep_best:
            return
        # Without `options`, which a jitted function cannot have within another.
        evaluation = sharding.under_mesh(self.evaluation, self.mesh)
        found = jax.eval_shape(
            lambda state, batch: metrics(evaluation(state, batch)), self.abstract_state(), dict(self.batch)
        )
        known = [name for name, value in found.items() if value.shape == ()]
        if loop.best_metric not in known:
            raise SparkError(f"loop.best_metric is {loop.best_metric!r}, expected one of {', '.join(known)}")

    def jit_step(self, shardings: TrainState) -> Any:
        """Returns `step`, jitted: what can be traced and compiled ahead of time."""
        return sharding.jit_step(self.step, self.mesh, shardings, self.options)

    def jit_step_at(self, shardings: TrainState) -> Callable[[int], Step]:
        """Returns the function from `state.step` to the jitted step that comes next."""
        late = self.jit_step(shardings)
        if self.early_step is None:
            return lambda number: late
        early = sharding.jit_step(self.early_step, self.mesh, shardings, self.options)
        return lambda number: early if number < self.switch_at else late

    def jit_evaluation(self, shardings: TrainState) -> Callable[[TrainState, Any], Any]:
        """Returns `evaluation`, jitted."""
        return sharding.jit_eval(self.evaluation, self.mesh, shardings, self.options)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None) -> Mesh:
    """Returns the mesh of a configuration; `devices` None: all of this run's processes.

    Raises:
      SparkError: sizes that do not fit the number of devices, or how they are connected.
    """
    return sharding.make_mesh(config.data, config.fsdp, config.tensor, devices)


def row_multiple(mesh: Mesh) -> int:
    """Returns the number of parts that the rows of a batch are divided into: the devices on data and fsdp."""
    return mesh.shape[sharding.DATA] * mesh.shape[sharding.FSDP]


def check_rows(name: str, rows: int, mesh: Mesh) -> None:
    """Raises a SparkError unless the devices on data and fsdp divide the rows of a batch evenly."""
    if rows % (parts := row_multiple(mesh)):
        raise SparkError(f"{name} is {rows}, expected a multiple of {parts}, the devices on data and fsdp")
