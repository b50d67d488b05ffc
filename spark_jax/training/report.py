"""Metrics of a run on their way from the device to files, log and progress bar."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from spark_jax.shared import distributed
from spark_jax.training.clock import Clock
from spark_jax.training.metrics import MetricsWriter, Window, log_line
from spark_jax.training.run import Run
from spark_jax.training.state import TrainState


class MetricsReport:
    """Reports a run's metrics one step late, so that the device never waits for the host.

    Args:
      run: what is reported, and where to.
      state: the one that the run starts or goes on from.

    Attributes:
      pending: number and metrics of the step that was started last.
      clock: where the time goes.
      skipped_in_a_row: updates that were left out last, one after the other.
    """

    def __init__(self, run: Run, state: TrainState):
        self.pending: tuple[int, Any] | None = None
        self.clock = Clock()
        self.skipped_in_a_row = 0
        self._run, self._window, self._skipped = run, Window(), int(state.skipped)
        step, primary = int(state.step), distributed.is_primary()
        self._writer = MetricsWriter(run.output, resume_step=step) if primary else None
        self._terminal = primary and sys.stderr.isatty()
        self._bar = tqdm(total=run.config.steps, initial=step, disable=not self._terminal, dynamic_ncols=True)

    @property
    def should_abort(self) -> bool:
        """Whether `loop.max_skipped` updates in a row were left out."""
        return self.skipped_in_a_row >= self._run.config.max_skipped

    def fetch_pending(self) -> None:
        """Fetches the metrics of the step before: the device is already at work on the next one."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        self._bar.update(1)
        self._count_skipped(step, metrics)
        self._window.add({name: value for name, value in metrics.items() if np.isfinite(value)})
        config = self._run.config
        if step % config.log_every == 0 or step == config.steps:
            values = self._summary(step)
            self.write(step, "train", values, line=not self._terminal)
            if self._terminal and "loss" in values:
                self._bar.set_postfix({"loss": f"{values['loss']:.4f}"})

    def write(self, step: int, group: str, values: Mapping[str, float], line: bool = True) -> None:
        """Writes metrics of a group ("train", "validation", "run") into the files, and as a line into the log."""
        if self._writer is not None:
            self._writer.write(step, group, values)
            if line:
                self._bar.clear()
                log_line(step, group, values)

    def close(self, step: int) -> None:
        """Writes the run's totals and closes the files."""
        self.write(step, "run", self.clock.totals() | self._run.data_counts(), line=False)
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _summary(self, step: int) -> dict[str, float]:
        """Metrics, times and rates of the steps since the last line."""
        run, program = self._run, self._run.program
        means, sums = self._window.take()
        values = means | self.clock.take()
        seconds = values.pop("window_seconds")
        if program.rate is not None:
            values[f"{program.rate}_per_second"] = sums[program.rate] / seconds
        if run.step_flops is not None and run.peak_flops is not None:
            values["mfu"] = run.step_flops(means) / (run.peak_flops * run.mesh.size * values["step_seconds"])
        # Left-out updates do not count: neither does the optimizer's counter.
        updates = step - 1 - self._skipped
        values |= {name: float(rate(updates)) for name, rate in program.schedules.items()}
        return values | {"skipped_total": self._skipped} | run.data_counts()

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
