"""Where the time of a run goes: waiting for data, computing, evaluation, checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_APART = ("checkpoint", "evaluation")  # not part of the steps' time


class Clock:
    """Wall time of a window of steps and of the whole run, by what it was spent on."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._steps_in_all, self._spent_in_all = 0, dict.fromkeys(("data_wait", *_APART), 0.0)
        self._reset()

    def _reset(self) -> None:
        self._start, self._steps = time.perf_counter(), 0
        self._spent = dict.fromkeys(self._spent_in_all, 0.0)

    def count(self) -> None:
        """Counts a step that has been started."""
        self._steps += 1
        self._steps_in_all += 1

    @contextmanager
    def spent(self, on: str) -> Iterator[None]:
        """Adds the time inside to "data_wait", "checkpoint" (the training waits for it) or "evaluation"."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._spent[on] += seconds
            self._spent_in_all[on] += seconds

    def take(self) -> dict[str, float]:
        """Returns the times of the window since the last call.

        Returns:
          `step_seconds`, and of these `data_wait_seconds` and `compute_seconds`, a step; `checkpoint_seconds` and
          `evaluation_seconds`, in the window, on top of the steps; `window_seconds`, of all steps.
        """
        seconds = time.perf_counter() - self._start - sum(self._spent[name] for name in _APART)
        steps, waited = max(self._steps, 1), self._spent["data_wait"]
        values = {
            "step_seconds": seconds / steps,
            "data_wait_seconds": waited / steps,
            "compute_seconds": (seconds - waited) / steps,
            **{f"{name}_seconds": self._spent[name] for name in _APART},
            "window_seconds": seconds,
        }
        self._reset()
        return values

    def totals(self) -> dict[str, float]:
        """Returns steps of this run and seconds in all: a run that was resumed counts from there."""
        seconds = time.perf_counter() - self._begin
        rest = seconds - sum(self._spent_in_all.values())
        spent = {f"{name}_seconds": value for name, value in self._spent_in_all.items()}
        return {"steps": self._steps_in_all, "seconds": seconds, "compute_seconds": rest, **spent}
