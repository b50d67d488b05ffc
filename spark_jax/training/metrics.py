"""Metrics of a run: JSON Lines and TensorBoard, and the window over which the loop averages them."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tensorboardX import SummaryWriter

from spark_jax.shared.files import cannot_write, write_text


class MetricsWriter:
    """Appends to `directory/metrics.jsonl` and to TensorBoard files beside it.

    Args:
      directory: the run's folder.
      resume_step: the step the run starts from; lines of later steps (written by a run that was killed after
        its last checkpoint) are dropped, so that every step stands once.

    Raises:
      SparkError: the file cannot be written.
    """

    def __init__(self, directory: str | Path, resume_step: int = 0):
        folder = Path(directory)
        self._path = path = folder / "metrics.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                kept = [line for line in path.read_text().splitlines() if _step_of(line) <= resume_step]
                write_text(path, "".join(line + "\n" for line in kept))
            self._file = path.open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)
        except OSError as error:
            raise cannot_write(path, error) from error

    def write(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Writes one line `{"step", "group", …values}`, null for what is not finite; TensorBoard tags are `group/name`.

        Raises:
          SparkError: the file cannot be written.
        """
        try:
            known = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._file.write(json.dumps({"step": step, "group": group, **known}) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Closes both."""
        self._file.close()
        self._board.close()


class Window:
    """Metrics since the last log line.

    Means are over the steps that report a metric; those of target tokens over the tokens: `loss_x`, `accuracy_x` and
    `accuracy_top10_x` of steps that also report `targets_x`. Without any such token they are left out.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weighted: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, metrics: Mapping[str, float | np.generic | np.ndarray]) -> None:
        """Adds the metrics of one step."""
        for name, value in metrics.items():
            weight = float(metrics.get(_count_of(name), 1.0))
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
            if weight:
                self._weighted[name] = self._weighted.get(name, 0.0) + float(value) * weight
                self._weights[name] = self._weights.get(name, 0.0) + weight

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns means and sums since the last call."""
        sums = self._sums
        means = {name: value / self._weights[name] for name, value in self._weighted.items()}
        self._sums, self._weighted, self._weights = {}, {}, {}
        return means, sums


def _count_of(name: str) -> str | None:
    """The metric that counts the tokens that a metric is a mean of."""
    for kind in ("loss", "accuracy_top10", "accuracy"):
        if name == kind or name.startswith(f"{kind}_"):
            return "targets" + name.removeprefix(kind)
    return None


def log_line(step: int, group: str, values: Mapping[str, float]) -> None:
    """Prints a plain line on stderr, for logs and for eyes."""
    figures = " ".join(f"{name}={value:.4g}" for name, value in values.items())
    print(f"step {step} {group}: {figures}", file=sys.stderr, flush=True)


def edit_distance(ours: Int[np.ndarray, " ours"], theirs: Int[np.ndarray, " theirs"]) -> int:
    """Returns the least number of insertions, deletions and substitutions between two sequences of ids."""
    steps = np.arange(len(theirs) + 1)
    row = steps
    for i, label in enumerate(ours, 1):
        changed = np.concatenate([[i], np.minimum(row[1:] + 1, row[:-1] + (theirs != label))])
        # Deletions run along the row: min over j ≤ k of changed[j] + (k − j), as a running minimum.
        row = np.minimum.accumulate(changed - steps) + steps
    return int(row[-1])


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # the half line of a killed run
        return float("inf")
