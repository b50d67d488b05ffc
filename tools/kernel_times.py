"""What the kernels of a trace of `jax.profiler` took: by name, and by the part of the model that they belong to."""

import collections
import dataclasses
import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spark_jax.errors import SparkError

OTHER = "all else"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """All runs of one kernel for one instruction of the program.

    Attributes:
      name: of the kernel.
      instruction: of the compiled program; empty where the trace does not say.
      operation: what the instruction was in the Python program, as JAX names it; empty where it is not known.
      milliseconds: of all runs together.
      count: runs.
    """

    name: str
    instruction: str
    operation: str
    milliseconds: float
    count: int

    def row(self, total: float) -> str:
        """Returns the kernel's row of a table, with its share of `total` milliseconds."""
        return (
            f"| {self.name[:60]} | {self.instruction} | {self.operation[-90:]} | {self.count} "
            f"| {self.milliseconds:.2f} | {self.milliseconds / total:.1%} |"
        )


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels of a trace, the longest first.

    Attributes:
      kernels: of all streams.
      span: milliseconds from the first kernel's beginning to the last one's end.
    """

    kernels: tuple[Kernel, ...]
    span: float

    def by_part(self, parts: Mapping[str, str]) -> dict[str, float]:
        """Returns milliseconds of each part, forward and backward.

        Args:
          parts: regular expressions of operations; the first that is found counts.
        """
        found: dict[str, float] = collections.Counter()
        for kernel in self.kernels:
            part = next((part for part, pattern in parts.items() if re.search(pattern, kernel.operation)), OTHER)
            way = "backward" if "transpose(" in kernel.operation else "forward"
            found[f"{part}, {way}"] += kernel.milliseconds
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def table(self, parts: Mapping[str, str], top: int) -> str:
        """Returns parts and the longest kernels as Markdown."""
        total = sum(kernel.milliseconds for kernel in self.kernels) or 1.0
        lines = [
            f"one step: {total:.2f} ms of kernels in {self.span:.2f} ms",
            "",
            "| part | ms | share |",
            "|---|---|---|",
            *(f"| {part} | {ms:.2f} | {ms / total:.1%} |" for part, ms in self.by_part(parts).items()),
            "",
            "| kernel | instruction | operation | runs | ms | share |",
            "|---|---|---|---|---|---|",
        ]
        return "\n".join(lines + [kernel.row(total) for kernel in self.kernels[:top]])


def read_kernels(folder: Path, program: str) -> Kernels:
    """Reads the newest trace in a folder of `jax.profiler.trace`.

    Args:
      folder: of the trace.
      program: text of the compiled program, which says what its instructions are.

    Raises:
      SparkError: there is no trace, or no device in it.
    """
    traces = sorted(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise SparkError(f"{folder}: no *.trace.json.gz, expected a trace of jax.profiler")
    with gzip.open(traces[-1], "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    runs = _device_events(events)
    if not runs:
        raise SparkError(f"{traces[-1]}: no kernels, expected those of a device")
    operations = dict(re.findall(r'%?([\w.\-]+) = .*?metadata=\{[^}]*?op_name="([^"]*)"', program))
    # Kernels of a recorded graph are without their instruction; those that XLA wrote are named after it.
    by_kernel = {re.sub(r"\W", "_", name): operation for name, operation in operations.items()}
    milliseconds: dict[tuple[str, str], float] = collections.Counter()
    counts: dict[tuple[str, str], int] = collections.Counter()
    for event in runs:
        arguments = event.get("args", {})
        key = event["name"], str(arguments.get("hlo_op", ""))
        milliseconds[key] += event.get("dur", 0.0) / 1000
        counts[key] += 1
    kernels = [
        Kernel(
            name,
            instruction,
            operations.get(instruction) or by_kernel.get(name, ""),
            milliseconds[name, instruction],
            count,
        )
        for (name, instruction), count in counts.items()
    ]
    start = min(event["ts"] for event in runs)
    end = max(event["ts"] + event.get("dur", 0.0) for event in runs)
    return Kernels(tuple(sorted(kernels, key=lambda kernel: -kernel.milliseconds)), (end - start) / 1000)


def _device_events(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the runs of kernels: of a GPU what is on its streams, of other devices the lines of operations.

    A trace repeats them on lines of its own, by module, by operation and by name.
    """
    names: dict[str, dict[Any, str]] = {"process_name": {}, "thread_name": {}}
    for event in events:
        if event.get("ph") == "M" and event.get("name") in names:
            key = event["pid"] if event["name"] == "process_name" else (event["pid"], event["tid"])
            names[event["name"]][key] = event["args"]["name"]
    devices = {pid for pid, name in names["process_name"].items() if "/device:" in name}
    of_devices = [event for event in events if event.get("ph") == "X" and event["pid"] in devices]
    for line in ("Stream", "XLA Ops"):
        chosen = {key for key, name in names["thread_name"].items() if name.startswith(line)}
        if found := [event for event in of_devices if (event["pid"], event["tid"]) in chosen]:
            return found
    return of_devices
