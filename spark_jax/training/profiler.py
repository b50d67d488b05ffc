"""A trace of some steps of a run."""

from collections.abc import Callable
from pathlib import Path

import jax

from spark_jax.errors import SparkError
from spark_jax.shared import distributed


class Profiler:
    """Traces steps by jax.profiler, for TensorBoard's profile plugin or Perfetto; on process 0 alone.

    Args:
      steps: the first one traced and the one after the last; None: none is.
      directory: of the trace.

    Raises:
      SparkError: no such steps.
    """

    def __init__(self, steps: tuple[int, int] | None, directory: Path):
        self._steps, self._directory, self._running = steps, directory, False
        if steps is not None and not 0 <= steps[0] < steps[1]:
            raise SparkError(f"loop.profile is {list(steps)}, expected [first step, step after the last]")

    def before(self, step: int, fetch_pending: Callable[[], None]) -> None:
        """Starts or stops the trace before the step that follows `step` others; `fetch_pending` waits for these."""
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
        """Stops a trace that runs and says where it is."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            distributed.log(f"profile of steps {self._steps[0]} to {self._steps[1] - 1}: {self._directory}")
