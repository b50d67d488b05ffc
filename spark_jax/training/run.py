"""What the runs of all trainings have beside state and data: folder, devices, data report, checkpoints, written parts.

The order of a run, as `train` of each training has it: program → data → `Run` → `initialize_or_restore` → `loop.fit`.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.data import pipeline, sources
from spark_jax.data.config import AudioDataConfig, CodecDataConfig, TokenDataConfig
from spark_jax.errors import SparkError
from spark_jax.model_directory.directory import write_parts
from spark_jax.performance import hardware
from spark_jax.shared import distributed
from spark_jax.shared.files import replace_directory, temporary_name
from spark_jax.training import settings
from spark_jax.training.checkpoint import Checkpoints, abstract, check_not_past
from spark_jax.training.config import LoopConfig
from spark_jax.training.program import Program
from spark_jax.training.state import TrainState

# What a run's folder has of a model directory, beside vocabulary.json, which belongs to the recognizer.
_MODEL_DIRECTORY = ("params", "tokenizer", "config.json", "vocabulary.json", settings.FILE)


class Run:
    """One run of a training, in one or several processes, all of which make all calls.

    Args:
      output: its folder, shared by all processes.
      program: what is trained.
      system: the sizes of the model.
      config: length and rhythm.
      step_flops: useful operations of a step on all devices, from the means of its metrics; None: not known.

    Attributes:
      mesh: the devices.
      share: which rows of each batch this process loads, (index, count).
      checkpoints: of this run, perhaps of an earlier start.
      is_new: whether there was no checkpoint to go on from.
      peak_flops: operations a second of one device; None: not known.

    Raises:
      SparkError: the mesh leaves out devices of a run of several processes, or its processes cannot share a batch; the
        folder cannot be written, all checkpoints in it are damaged, or one is of a step beyond `config.steps`.
    """

    def __init__(
        self,
        output: Path,
        program: Program,
        system: SparkConfig,
        config: LoopConfig,
        step_flops: Callable[[Mapping[str, float]], float] | None = None,
    ):
        self.output, self.program, self.config, self.mesh = Path(output), program, config, program.mesh
        if jax.process_count() > 1 and self.mesh.size != jax.device_count():
            raise SparkError(
                f"mesh {dict(self.mesh.shape)}: expected all {jax.device_count()} devices of the processes"
            )
        self.share = sharding.batch_share(self.mesh)
        self.step_flops, self.peak_flops = step_flops, hardware.peak_flops(self.mesh.devices.flat[0])
        check_not_past(self.output, config.steps)
        self.checkpoints = Checkpoints.of_run(self.output, config)
        self.is_new = self.checkpoints.latest_step is None
        self._system, self._report = system, None
        if self.is_new:
            self.write_parts({})

    def report_data(self, parts: Mapping[str, sources.Summarized]) -> None:
        """Writes data.json, what the parts of the data have and what is left out of them, and logs it as a line."""
        self._report = sources.DataReport(self.output / "data.json" if distributed.is_primary() else None, parts)
        distributed.log(self._report.line())

    def data_counts(self) -> Mapping[str, float]:
        """Brings data.json up to date; returns counts of what this process has left out since the start."""
        return {} if self._report is None else self._report.update()

    def batches(
        self, plan: pipeline.Plan, load: pipeline.Load, data: AudioDataConfig | CodecDataConfig | TokenDataConfig
    ) -> grain.DatasetIterator[pipeline.Batch]:
        """Returns this process's share of the batches of the whole run, as an iterator that a checkpoint keeps."""
        return pipeline.batches(
            plan,
            load,
            self.config.steps,
            self.config.seed,
            threads=data.threads,
            prefetch=data.prefetch,
            process_index=self.share[0],
            process_count=self.share[1],
        )

    def initialize_or_restore(self, data: Any) -> tuple[TrainState, Any]:
        """Returns a fresh state, or the newest checkpoint's with `data` moved to its position; and the shardings.

        Raises:
          SparkError: no checkpoint can be read, or it is of another configuration.
        """
        if self.is_new:
            return sharding.initialize(self.mesh, self.program.init)
        boxed = jax.eval_shape(self.program.init)
        shardings = sharding.tree_shardings(self.mesh, boxed)
        return self.checkpoints.restore(abstract(sharding.unbox(boxed), shardings), data), shardings

    def write_parts(self, parts: Mapping[str, Any]) -> None:
        """Writes parts of the model into the run's folder, which is a model directory; older ones are replaced.

        Args:
          parts: variables by the part's name, collections on top.

        Raises:
          SparkError: the folder cannot be written.
        """
        if distributed.is_primary():
            settings.remove_old(self.output)
        write_parts(self.output, self._system, parts)

    def keep_best(self) -> None:
        """Makes the parts just written `best`, a model directory of its own, by links without a copy.

        Raises:
          SparkError: the folder cannot be written.
        """
        if not distributed.is_primary():
            return
        fresh = temporary_name(self.output / "best")
        fresh.mkdir()
        for path in (self.output / name for name in _MODEL_DIRECTORY):
            if path.is_dir():
                shutil.copytree(path, fresh / path.name, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
            elif path.exists():
                shutil.copy(path, fresh / path.name)
        replace_directory(fresh, self.output / "best")

    def close(self) -> None:
        """Waits for the last checkpoint and lets go of all threads.

        Raises:
          SparkError: the last checkpoint could not be written.
        """
        self.checkpoints.close()


def describe_parameters(params: Any) -> str:
    """Returns the number of parameters of a tree, for the log."""
    return f"{sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6:.2f} M"


def _link(source: str, target: str) -> None:
    """Parts are replaced whole, never changed, so that both names may share a file."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
