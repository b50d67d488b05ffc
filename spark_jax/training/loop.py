"""The loop that every trainer shares: step, metrics one step late, evaluation, checkpoints, signals."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from spark_jax import sharding
from spark_jax.training.checkpoint import Checkpoints, abstract
from spark_jax.training.config import LoopConfig
from spark_jax.training.metrics import MetricsWriter, Window, log_line
from spark_jax.training.state import TrainState


def initialize_or_restore(
    mesh: Mesh, init: Callable[[], TrainState], checkpoints: Checkpoints, data: Any
) -> tuple[TrainState, Any]:
    """A fresh state, or the newest checkpoint's with `data` moved to its position; and the state's shardings.

    Args:
      init: makes the boxed state (`new_state` over `module.init`); only traced when a checkpoint exists.
    """
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

    Returns:
      The last state, saved as a checkpoint. `int(state.step) < config.steps` when a signal stopped the run.
    """
    step = int(state.step)
    writer = MetricsWriter(directory, resume_step=step)
    window, clock = Window(), _Clock()
    terminal = sys.stderr.isatty()
    bar = tqdm(total=config.steps, initial=step, disable=not terminal, dynamic_ncols=True)
    pending: tuple[int, Any] | None = None

    def settle() -> None:
        """Fetches the metrics of the step before: the device is already at work on the next one."""
        nonlocal pending
        if pending is None:
            return
        done, metrics = pending
        pending = None
        window.add(jax.device_get(metrics))
        bar.update(1)
        if done % config.log_every == 0 or done == config.steps:
            means, sums = window.take()
            values = means | clock.take()
            if rate is not None:
                values[f"{rate}_per_second"] = sums[rate] / values.pop("window_seconds")
            writer.write(done, "train", values)
            if terminal:
                bar.set_postfix({"loss": f"{values['loss']:.4f}"} if "loss" in values else {})
            else:
                log_line(done, "train", values)

    def validate() -> None:
        if evaluate is not None:
            values = evaluate(state)
            writer.write(step, "validation", values)
            bar.clear()
            log_line(step, "validation", values)

    with _stop_signals() as stop_requested:
        while step < config.steps and not stop_requested():
            with clock.waiting():
                batch = next(data)
            state, metrics = step_fn(state, put(batch))
            step += 1
            settle()
            pending = (step, metrics)
            clock.count()
            due_evaluation = step % config.evaluate_every == 0 or step == config.steps
            due_checkpoint = step % config.checkpoint_every == 0 or step == config.steps
            if due_evaluation or due_checkpoint:
                settle()
                with clock.paused():
                    if due_evaluation:
                        validate()
                    if due_checkpoint:
                        checkpoints.save(step, state, data)
        settle()
        checkpoints.save(step, state, data)
    if step < config.steps:
        log_line(step, "stopped by a signal, saved", {})
    bar.close()
    writer.close()
    return state


class _Clock:
    """Wall time of a window of steps, less evaluation and checkpoints, and the wait for data in it."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def count(self) -> None:
        self._steps += 1

    @contextmanager
    def waiting(self):
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self):
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        steps = max(self._steps, 1)
        values = {
            "step_seconds": seconds / steps,
            "data_wait_seconds": self._waited / steps,
            "window_seconds": seconds,
        }
        self._reset()
        return values


@contextmanager
def _stop_signals():
    """Turns SIGTERM and SIGINT into a question; a second one has its usual effect. Main thread only."""
    requested = threading.Event()
    previous = {}

    def note(number, frame):
        requested.set()
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, note)
    try:
        yield requested.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
