"""The loop that every training shares: step, metrics one step late, evaluation, checkpoints, signals."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax
import numpy as np

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.shared import distributed
from spark_jax.training.profiler import Profiler
from spark_jax.training.program import Step
from spark_jax.training.report import MetricsReport
from spark_jax.training.run import Run
from spark_jax.training.state import TrainState


def fit(
    run: Run,
    state: TrainState,
    step_at: Callable[[int], Step],
    data: Iterator[Mapping[str, np.ndarray]],
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
) -> TrainState:
    """Trains until `run.config.steps`, or until SIGTERM or SIGINT, after which the state is saved and returned.

    Args:
      run: folder, rhythm, checkpoints and what is reported.
      state: the first state; its `step` says where the run stands. Donated to the steps.
      step_at: number of steps made → the jitted step that comes next, `Program.jit_step_at`; metrics are scalars.
      data: batches; saved with the state (a grain iterator).
      evaluate: validation, called every `evaluate_every` steps and at the end; writes parts, returns metrics.

    Returns:
      The last state, saved as a checkpoint. `int(state.step) < config.steps` when a signal stopped the run.

    Raises:
      SparkError: a file cannot be written; `config.max_skipped` updates in a row were not finite (the state is saved).
      Exception: of `data` and `evaluate`; a run of one process saves its state before.
    """
    config, checkpoints = run.config, run.checkpoints
    if config.max_skipped < 1:
        raise SparkError(f"loop.max_skipped is {config.max_skipped}, expected at least 1")
    step = int(state.step)
    report = MetricsReport(run, state)
    profiler = Profiler(config.profile, run.output / "profile")
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
                run.keep_best()
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
            state, metrics = step_at(step)(state, sharding.put_batch(run.mesh, batch))
            step += 1  # as state.step, without waiting for the device
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
            f"{run.output}: loss or gradient was not finite in {report.skipped_in_a_row} steps in a row up to step "
            f"{step} (loop.max_skipped is {config.max_skipped}); the state, without those updates, is saved"
        )
    if step < config.steps:
        distributed.log(f"step {step}: stopped by a signal, saved")
    return state
