"""Whole runs of `spark-jax batch` in processes of their own, and what they have written."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ENVIRON = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


def start(folder: Path, *options: str, **environ: str) -> subprocess.Popen:
    """Starts the command on jobs.jsonl in a folder; its messages go to a file there."""
    command = [sys.executable, "-m", "spark_jax.cli.main", "batch", "jobs.jsonl", *options]
    with open(folder / "messages.txt", "w") as messages:
        return subprocess.Popen(
            command, cwd=folder, env=os.environ | ENVIRON | environ, stdout=subprocess.DEVNULL, stderr=messages
        )


def short_jobs(count: int) -> list[str]:
    """Lines of jobs whose speech ends after 0.1 to 0.4 s."""
    return [
        json.dumps({"id": f"job-{n}", "text": f"Number {n}.", "gender": "male", "max_seconds": 0.1 + n % 7 / 20})
        for n in range(count)
    ]


def write(folder: Path, lines: Sequence[str]) -> None:
    (folder / "jobs.jsonl").write_text("\n".join(lines) + "\n")


def contents(output: Path) -> dict[str, object]:
    """All that a batch has written, without the seconds that it took."""
    found: dict[str, object] = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.name == "manifest.jsonl":
            found[name] = [record | {"seconds": None} for record in read(path)]
        elif path.is_file() and not path.name.startswith(".lock"):
            found[name] = path.read_bytes()
    return found


def read(path: Path) -> list[dict]:
    """Returns the records of a list."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def spoken(output: Path) -> int:
    """Returns how many jobs have files by now."""
    return len({name for _, _, names in os.walk(output) for name in names if name.endswith(".wav")})
