"""The loop that every trainer shares: step, metrics one step late, evaluation, checkpoints, signals."""

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.shared import distributed
from spark_jax.training.checkpoint import Checkpoints, abstract
from spark_jax.training.clock import Clock
from spark_jax.training.config import LoopConfig
from spark_jax.training.metrics import MetricsWriter, Window, log_line
from spark_jax.training.state import TrainState


def initialize_or_restore(
    mesh: Mesh, init: Callable[[], TrainState], checkpoints: Checkpoints, data: Any
) -> tuple[TrainState, Any]:
    """A fresh state, or the newest checkpoint's with `data` moved to its position; and the state's shardings.

    Args:
      init: makes the boxed state (`new_state` over `module.init`); only traced when a checkpoint exists.

    Raises:
      SparkError: no checkpoint can be read; the mesh leaves out devices of a run of several processes.
    """
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise SparkError(f"mesh {dict(mesh.shape)}: expected all {jax.device_count()} devices of the processes")
    if checkpoints.latest_step is None:
        return sharding.initialize(mesh, init)
    boxed = jax.eval_shape(init)
    shardings = sharding.tree_shardings(mesh, boxed)
    return checkpoints.restore(abstract(sharding.unbox(boxed), shardings), data), shardings


def fit(
    state: TrainState,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
    data: Iterator[Mapping[str, np.ndarray]],
    *,
    config: LoopConfig,
    checkpoints: Checkpoints,
    directory: str | Path,
    put: Callable[[Mapping[str, np.ndarray]], Any],
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    rate: str | None = None,
    schedules: Mapping[str, Callable[[int], Any]] | None = None,
    counts: Callable[[], Mapping[str, float]] | None = None,
    parts: Sequence[str] = (),
    flops_per_step: Callable[[Mapping[str, float]], float] | None = None,
    peak_flops: float | None = None,
) -> TrainState:
    """Trains until `config.steps`, or until SIGTERM or SIGINT, after which the state is saved and returned.

    Args:
      state: the first state; its `step` says where the run stands. Donated to `step_fn`.
      step_fn: a jitted step, `sharding.jit_step`; its metrics are scalars.
      data: batches; saved with the state (a grain iterator).
      directory: the run's folder for metrics.
      put: host batch → device batch, `sharding.put_batch`.
      evaluate: validation, called every `evaluate_every` steps and at the end; returns metrics.
      rate: name of a metric that counts work (tokens, audio seconds): it is also reported per second.
      schedules: learning rates by the name to report them under, functions of the updates made.
      counts: what it returns is added to each line of training metrics, and to the run's last one.
      parts: names in `directory` that `evaluate` writes; those of the best evaluation stay in `directory/best`.
      flops_per_step: useful ones of a step on all devices by the means of its metrics, for the utilization `mfu`.
      peak_flops: of one device, a second.

    Returns:
      The last state, saved as a checkpoint. `int(state.step) < config.steps` when a signal stopped the run.

    Raises:
      SparkError: a file cannot be written; `config.max_skipped` updates in a row were not finite (the state is saved).
      Exception: of `data` and `evaluate`; a run of one process saves its state before.
    """
    if config.max_skipped < 1:
        raise SparkError(f"loop.max_skipped is {config.max_skipped}, expected at least 1")
    step = int(state.step)
    report = MetricsReport(config, directory, step, int(state.skipped), rate, schedules or {})
    if flops_per_step is not None and peak_flops is not None:
        report.flops, report.peak_flops = flops_per_step, peak_flops * len(state.step.sharding.device_set)
    if counts is not None:
        report.counts = counts
    profiler = _Profiler(config, Path(directory) / "profile")
    clock = report.clock

    def validate() -> Mapping[str, float] | None:
        """Metrics, where there are any; the parts that belong to the best ones are kept."""
        if evaluate is None:
            return None
        with clock.spent("evaluation"):
            values = evaluate(state)
            if config.keep_best and config.best_metric not in values:
                raise SparkError(f"loop.best_metric is {config.best_metric!r}, expected one of {', '.join(values)}")
            report.write(step, "validation", values)
            best = checkpoints.best
            if config.keep_best and (best is None or values[config.best_metric] < best[1]):
                if distributed.is_primary():
                    _keep_best(Path(directory), parts)
        return values

    @contextmanager
    def saving_on_error() -> Iterator[None]:
        """What one process runs into, several cannot save together: they end, and go on from the last checkpoint."""
        try:
            yield
        except Exception:
            if jax.process_count() == 1:
                try:
                    report.fetch_pending()
                    checkpoints.save(step, state, data)
                    checkpoints.wait()
                    distributed.log(f"step {step}: saved, for there was an error")
                except SparkError as error:
                    distributed.log(f"step {step}: {error}")
            raise

    with distributed.stop_signals() as stop:
        while step < config.steps and not report.should_abort and not stop.agreed():
            profiler.before(step, report.fetch_pending)
            with clock.spent("data_wait"), saving_on_error():
                batch = next(data)
            state, metrics = step_fn(state, put(batch))
            step += 1
            report.fetch_pending()
            report.pending = (step, metrics)
            clock.count()
            due_evaluation = step % config.evaluate_every == 0 or step == config.steps
            due_checkpoint = step % config.checkpoint_every == 0 or step == config.steps
            values = None
            if due_evaluation or due_checkpoint:
                report.fetch_pending()
            if due_evaluation:
                with saving_on_error():
                    values = validate()
                due_checkpoint |= values is not None and checkpoints.would_keep(values)
            if due_checkpoint:
                with clock.spent("checkpoint"):
                    checkpoints.save(step, state, data, values)
        report.fetch_pending()
        profiler.stop()
        with clock.spent("checkpoint"):
            checkpoints.save(step, state, data)
            checkpoints.wait()
    report.close(step)
    if report.should_abort:
        raise SparkError(
            f"{directory}: loss or gradient was not finite in {report.skipped_in_a_row} steps in a row up to step "
            f"{step} (loop.max_skipped is {config.max_skipped}); the state, without those updates, is saved"
        )
    if step < config.steps:
        distributed.log(f"step {step}: stopped by a signal, saved")
    return state


class MetricsReport:
    """Metrics on their way from the device to files, log and progress bar, one step late."""

    def __init__(
        self,
        config: LoopConfig,
        directory: str | Path,
        step: int,
        skipped: int,
        rate: str | None,
        schedules: Mapping[str, Callable[[int], Any]],
    ):
        self.pending: tuple[int, Any] | None = None
        self.clock = Clock()
        self.flops: Callable[[Mapping[str, float]], float] | None = None
        self.peak_flops = math.inf  # of all devices, a second
        self.counts: Callable[[], Mapping[str, float]] = dict
        self.skipped_in_a_row = 0
        self._skipped, self._rate, self._schedules = skipped, rate, schedules
        self._config, self._window = config, Window()
        primary = distributed.is_primary()
        self._writer = MetricsWriter(directory, resume_step=step) if primary else None
        self._terminal = primary and sys.stderr.isatty()
        self._bar = tqdm(total=config.steps, initial=step, disable=not self._terminal, dynamic_ncols=True)

    @property
    def should_abort(self) -> bool:
        return self.skipped_in_a_row >= self._config.max_skipped

    def fetch_pending(self) -> None:
        """Fetches the metrics of the step before: the device is already at work on the next one."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        self._bar.update(1)
        self._count_skipped(step, metrics)
        self._window.add({name: value for name, value in metrics.items() if np.isfinite(value)})
        if step % self._config.log_every == 0 or step == self._config.steps:
            means, sums = self._window.take()
            values = means | self.clock.take()
            seconds = values.pop("window_seconds")
            if self._rate is not None:
                values[f"{self._rate}_per_second"] = sums[self._rate] / seconds
            if self.flops is not None:
                values["mfu"] = self.flops(means) / (self.peak_flops * values["step_seconds"])
            # Left-out updates do not count: neither does the optimizer's counter.
            values |= {name: float(rate(step - 1 - self._skipped)) for name, rate in self._schedules.items()}
            values["skipped_total"] = self._skipped
            values |= self.counts()
            self.write(step, "train", values, line=not self._terminal)
            if self._terminal and "loss" in values:
                self._bar.set_postfix({"loss": f"{values['loss']:.4f}"})

    def write(self, step: int, group: str, values: Mapping[str, float], line: bool = True) -> None:
        if self._writer is not None:
            self._writer.write(step, group, values)
            if line:
                self._bar.clear()
                log_line(step, group, values)

    def close(self, step: int) -> None:
        self.write(step, "run", self.clock.totals() | self.counts(), line=False)
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _count_skipped(self, step: int, metrics: Mapping[str, Any]) -> None:
        if not metrics.get("skipped", 0):
            self.skipped_in_a_row = 0
            return
        self._skipped += 1
        self.skipped_in_a_row += 1
        distributed.log(
            f"step {step}: loss or gradient is not finite, update left out "
            f"({self.skipped_in_a_row} in a row, {self._skipped} in all)"
        )


class _Profiler:
    """A trace of some steps by jax.profiler, for TensorBoard's profile plugin or Perfetto; of process 0."""

    def __init__(self, config: LoopConfig, directory: Path):
        self._steps, self._directory, self._running = config.profile, directory, False
        if self._steps is not None and not 0 <= self._steps[0] < self._steps[1]:
            raise SparkError(f"loop.profile is {list(self._steps)}, expected [first step, step after the last]")

    def before(self, step: int, fetch_pending: Callable[[], None]) -> None:
        """Called before the step that follows `step` others; `fetch_pending` waits for these."""
        if self._steps is None or not distributed.is_primary():
            return
        if self._running and step >= self._steps[1]:
            fetch_pending()
            self.stop()
        elif not self._running and step == self._steps[0]:
            fetch_pending()
            jax.profiler.start_trace(self._directory)
            self._running = True

    def stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            distributed.log(f"profile of steps {self._steps[0]} to {self._steps[1] - 1}: {self._directory}")


def _keep_best(directory: Path, parts: Sequence[str]) -> None:
    """The parts just written also become `directory/best`, a folder like the run's own, by links without a copy."""
    names = [name for name in (*parts, "config.json", "model.yaml") if (directory / name).exists()]
    fresh, target = directory / ".best.new", directory / "best"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for name in names:
        if (directory / name).is_dir():
            shutil.copytree(directory / name, fresh / name, copy_function=_link)
        else:
            shutil.copy(directory / name, fresh / name)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)


def _link(source: str, target: str) -> None:
    """Parts are replaced whole, never changed, so that both names may share a file."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
