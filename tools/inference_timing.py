"""Times of tools/benchmark_inference.py: rounds of two sides in turns, and what the device could do at best."""

import dataclasses
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spark_jax.performance import hlo
from spark_jax.performance.hardware import accelerator

ROUND_SECONDS = 1.0  # that a round takes at least, where so many runs are possible
COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name for the compiler's work

# Runs something so many times, and waits until all of it is done.
Side = Callable[[int], Any]


class Times(NamedTuple):
    """Seconds of a run, of each round: by the clock, and of this process's processors."""

    wall: tuple[float, ...] = ()
    processor: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was measured of one program or of one way to speak.

    Attributes:
      section: of the benchmark.
      sizes: in words.
      unit: what a run makes: "tokens", "audio s".
      amount: how much of it.
      ours, theirs: times of a run here and in PyTorch; no rounds: there is no such comparison.
      moved: bytes that a run must read and write, or that the compiled program does; None: not known.
      operations: of a run; None: not counted.
      at_best: the shortest seconds of a run on this device, by its arithmetic or its memory.
      compiling: seconds of the compiler, until the rounds began.
      more: anything else.
    """

    section: str
    sizes: str
    unit: str
    amount: float
    ours: Times
    theirs: Times = Times()
    moved: float | None = None
    operations: float | None = None
    at_best: float | None = None
    compiling: float = 0.0
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def median(self) -> float:
        """Returns the median seconds of a run."""
        return statistics.median(self.ours.wall)

    def as_json(self) -> dict[str, Any]:
        """Returns all of it with the figures that follow from it."""
        found = dataclasses.asdict(self) | {"ours": self.ours._asdict(), "theirs": self.theirs._asdict()}
        found |= {"median": self.median, "rate": self.amount / self.median}
        if self.theirs.wall:
            found["ratio"] = self.ratio("wall")
        return found

    def ratio(self, kind: str) -> float:
        """Returns PyTorch's time over ours, by the "wall" clock or of the "processor"; medians of rounds."""
        theirs, ours = (statistics.median(getattr(times, kind)) for times in (self.theirs, self.ours))
        return theirs / ours


@dataclasses.dataclass(frozen=True)
class Peak:
    """What a device can do at best.

    Attributes:
      bandwidth: of its memory, bytes/s.
      flops: of products of one data type.
      source: where the figures are from.
    """

    bandwidth: float
    flops: float
    source: str

    def at_best(self, moved: float | None, operations: float | None) -> float | None:
        """Returns the seconds that the slower of memory and arithmetic takes at least."""
        times = [(moved or 0.0) / self.bandwidth, (operations or 0.0) / self.flops]
        return max(times) or None


def peak(kind: str) -> Peak:
    """Returns the makers' figures of the default device where they are known, else those of a short measurement.

    Args:
      kind: "bfloat16", "float32" (products of full precision) or "tf32" (float32 by the backend's default).
    """
    known = accelerator(jax.devices()[0].device_kind)
    if known is not None and kind == "bfloat16":
        return Peak(known.memory_bandwidth, known.flops, f"the maker's, {known.name}")
    flops = _measured_flops(kind)
    if known is not None:
        return Peak(known.memory_bandwidth, flops, f"memory the maker's, {known.name}; products measured")
    return Peak(_measured_bandwidth(), flops, "measured")


def measured(
    section: str,
    sizes: str,
    unit: str,
    amount: float,
    times: Mapping[str, Times],
    kind: str,
    operations: float,
    moved: float | None = None,
    compiling: float = 0.0,
    more: Mapping[str, Any] | None = None,
) -> Measurement:
    """Returns the measurement of a compiled program, and what the device could do at best.

    Args:
      section, sizes, unit, amount, operations, moved, compiling, more: see `Measurement`.
      times: of `alternate`, of "ours" and perhaps of "PyTorch".
      kind: of the arithmetic, see `peak`.
    """
    ours, theirs = times["ours"], times.get("PyTorch", Times())
    at_best = peak(kind).at_best(moved, operations)
    return Measurement(
        section, sizes, unit, amount, ours, theirs, moved, operations, at_best, compiling, more if more else {}
    )


class Compiler:
    """Counts the seconds that the compiler works, and the programs that it makes."""

    def __init__(self):
        self.seconds, self.programs = 0.0, 0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            self.seconds, self.programs = self.seconds + seconds, self.programs + 1


def alternate(sides: Mapping[str, Side], rounds: int, most: int = 50, warm: int = 1) -> dict[str, Times]:
    """Measures each side in each round; a round has as many runs as take a second.

    Args:
      sides: what is measured, by name; they take turns.
      rounds: of each.
      most: runs of a round.
      warm: runs before anything is timed.
    """
    runs = {}
    for name, side in sides.items():
        side(warm)
        runs[name] = min(most, max(1, math.ceil(ROUND_SECONDS / max(seconds_of(side, 1), 1e-6))))
    return one_by_one(sides, rounds, runs)


def one_by_one(sides: Mapping[str, Side], rounds: int, runs: Mapping[str, int] | None = None) -> dict[str, Times]:
    """Measures each side in each round, without a run before; `runs`: how many a round has of each, or one."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            count, processor = 1 if runs is None else runs[name], time.process_time()
            wall = seconds_of(side, count) / count
            found[name].append((wall, (time.process_time() - processor) / count))
    return {name: Times(*zip(*own, strict=True)) for name, own in found.items()}


def seconds_of(side: Side, count: int) -> float:
    """Returns the seconds of so many runs."""
    start = time.perf_counter()
    side(count)
    return time.perf_counter() - start


def moved_bytes(compiled: Any) -> float | None:
    """Returns the bytes that a compiled program reads and writes; None: its text is not understood."""
    try:
        return hlo.traffic(compiled.as_text()).memory_bytes
    except Exception:  # a backend writes its programs as it likes
        return (compiled.cost_analysis() or {}).get("bytes accessed")


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def memory_peak() -> int | None:
    """Returns the most bytes of the device that were ever taken; None: it does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


@functools.cache
def _measured_flops(kind: str) -> float:
    size = 1024 if jax.devices()[0].platform == "cpu" else 8192
    x = jnp.ones((size, size), jnp.bfloat16 if kind == "bfloat16" else jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest" if kind == "float32" else "default"))
    return 2.0 * size**3 / _fastest(product, x)


@functools.cache
def _measured_bandwidth() -> float:
    size = 1 << 26  # 256 MB
    x, matrix = jnp.ones(size, jnp.float32), jnp.ones((size >> 13, 1 << 13), jnp.float32)
    copied = 2 * x.nbytes / _fastest(jax.jit(lambda x: x + 1), x)
    return max(copied, x.nbytes / _fastest(jax.jit(lambda x: x @ x[0]), matrix))


def _fastest(function: Callable[[Any], Any], x: Any, times: int = 5) -> float:
    function(x).block_until_ready()
    return min(seconds_of(lambda _: function(x).block_until_ready(), 1) for _ in range(times))
