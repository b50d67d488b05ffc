"""Tables, JSON and the picture of tools/benchmark_inference.py; everything is written as soon as it is measured."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import heard
import typer
from heard import Heard
from inference_timing import Measurement, machine, memory_peak

from spark_jax.shared import files
from spark_jax.shared.extra import needs_extra

HEADER = (
    "| section | sizes | a second | a run, s | GB/s | TFLOP/s | at best, a second | of that | PyTorch, s "
    "| PyTorch's time over ours |\n" + "|---" * 10 + "|"
)


@dataclasses.dataclass
class Report:
    """What was found so far.

    Attributes:
      options: of the command.
      output: JSON file that is written again after every figure; None: none.
    """

    options: dict[str, Any]
    output: Path | None
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    streams: dict[int, list[list[Heard]]] = dataclasses.field(default_factory=dict)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    def say(self, line: str) -> None:
        """Prints a line at once: the run may be cut off."""
        print(line, flush=True)

    def add(self, found: Measurement) -> None:
        """Prints and keeps a measurement."""
        if not self.measurements:
            self.say(HEADER)
        self.measurements.append(found)
        self.say(row(found))
        self.write()

    def add_streams(self, count: int, rounds: list[list[Heard]]) -> None:
        """Prints and keeps what was heard of so many streams."""
        if not self.streams:
            self.say(f"\n{heard.HEADER}")
        self.streams[count] = rounds
        self.say(heard.row(count, rounds))
        self.write()

    def fail(self, section: str, message: str) -> None:
        """Prints and keeps why a section could not be measured; the others go on."""
        self.failures[section] = message
        typer.echo(f"{section}: {message}", err=True)
        self.write()

    def write(self) -> None:
        """Writes all of it."""
        if self.output is None:
            return
        listened = {
            str(count): {
                "first chunk": statistics.median(heard.first_chunk for one in rounds for heard in one),
                "longest gap": max(heard.longest_gap for one in rounds for heard in one),
                "late streams": sum(own.longest_gap > heard.LATE for one in rounds for own in one),
                "audio seconds a second": heard.speed(rounds),
                "rounds": [[own._asdict() for own in one] for one in rounds],
            }
            for count, rounds in self.streams.items()
        }
        content = {
            "machine": machine(),
            "options": self.options,
            "peak memory": memory_peak(),
            "measurements": [found.as_json() for found in self.measurements],
            "streams": listened,
            "failures": self.failures,
        }
        files.write_json(self.output, content)


def row(found: Measurement) -> str:
    """Returns the line of the table for a measurement."""
    median, low, high = found.median, min(found.ours.wall), max(found.ours.wall)
    cells = [
        found.section,
        found.sizes,
        f"{found.amount / median:,.4g} {found.unit}",
        f"{median:.4g} ({low:.4g}–{high:.4g})",
        "–" if found.moved is None else f"{found.moved / median / 1e9:,.4g}",
        "–" if found.operations is None else f"{found.operations / median / 1e12:,.3g}",
        "–" if found.at_best is None else f"{found.amount / found.at_best:,.4g} {found.unit}",
        "–" if found.at_best is None else f"{found.at_best / median:.0%}",
    ]
    if theirs := found.theirs.wall:
        cells += [
            f"{statistics.median(theirs):.4g} ({min(theirs):.4g}–{max(theirs):.4g})",
            f"{found.ratio('wall'):.2f}",
        ]
    else:
        cells += ["–", "–"]
    line = f"| {' | '.join(cells)} |"
    notes = [f"{name} {_short(value)}" for name, value in found.more.items() if name not in ("slots",)]
    if theirs:
        notes.append(f"PyTorch's processor time over ours {found.ratio('processor'):.2f}")
    notes += [f"compiled in {found.compiling:.1f} s"] if found.compiling else []
    return line if not notes else f"{line}\n<!-- {'; '.join(notes)} -->"


def draw(measurements: Sequence[Measurement], streams: dict[int, list[list[Heard]]], path: Path) -> None:
    """Draws decoding by slots beside its roofline, the vocoder, and the delay of streams.

    Raises:
      SparkError: matplotlib is missing.
    """
    with needs_extra("plots"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    decode = [found for found in measurements if found.section == "decode"]
    slots = [found.more["slots"] for found in decode]
    left.loglog(slots, [found.amount / found.median for found in decode], "o-", label="measured")
    left.loglog(slots, [found.amount / found.at_best for found in decode if found.at_best], "k--", label="roofline")
    if decode and all(found.theirs.wall for found in decode):
        theirs = [found.amount / statistics.median(found.theirs.wall) for found in decode]
        left.loglog(slots, theirs, "s-", label="PyTorch")
    left.set(title="decode", xlabel="slots", ylabel="tokens a second")
    left.legend()
    spoken = [found for found in measurements if found.unit == "audio s"]
    names = [f"{found.section}\n{found.sizes.replace(', ', chr(10))}" for found in spoken]
    middle.bar(names, [found.amount / found.median for found in spoken])
    middle.set(title="seconds of audio a second", yscale="log" if spoken else "linear")
    middle.tick_params(axis="x", labelsize=6)
    counts = sorted(streams)
    first = [statistics.median(own.first_chunk for one in streams[count] for own in one) for count in counts]
    right.plot(counts, first, "o-")
    right.set(title="first chunk of a stream", xlabel="streams", ylabel="s")
    figure.savefig(path)
    pyplot.close(figure)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
