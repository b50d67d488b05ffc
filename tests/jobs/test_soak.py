"""Long proofs: thousands of jobs through the command, killed at random, are those of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "spark_jax.cli.main", "batch", "jobs.jsonl", "--slots", "32"]
BAD = [
    "{",
    "[]",
    '"text"',
    '{"text": "no id"}',
    '{"id": "no text"}',
    '{"id": "empty", "text": ""}',
    '{"id": "typo", "text": "Hi.", "gendre": "male"}',
    '{"id": "gone", "text": "Hi.", "reference": "nowhere.wav"}',
    '{"id": "job-0", "text": "Given twice.", "gender": "male"}',
    '{"id": "impossible", "text": "Hi.", "gender": "male", "top_k": 1000}',
]


def write_jobs(folder: Path, count: int) -> list[int]:
    """Writes short jobs with the bad ones among them; returns the lines of these."""
    rng, lines, places = random.Random(0), [], []
    places = sorted(rng.sample(range(count), len(BAD) - 1) + [count])
    bad = iter(BAD)
    for number in range(count + 1):
        if number in places:
            lines.append(next(bad))
        if number < count:
            job = {
                "id": f"job-{number}",
                "text": f"Number {number}.",
                "gender": "male",
                "max_seconds": 0.1 + number % 7 / 20,
            }
            lines.append(json.dumps(job))
    (folder / "jobs.jsonl").write_text("\n".join(lines) + "\n")
    return [number for number, line in enumerate(lines, 1) if line in BAD]


def contents(output: Path) -> dict[str, object]:
    """All that a batch has written, without the seconds that it took."""
    found: dict[str, object] = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.name == "manifest.jsonl":
            found[name] = [json.loads(line) | {"seconds": None} for line in path.read_text().splitlines()]
        elif path.is_file() and not path.name.startswith(".lock"):
            found[name] = path.read_bytes()
    return found


def spoken(output: Path) -> int:
    """How many jobs have files by now."""
    return len({path.name for path in output.rglob("*.wav")})


def resident(pid: int) -> int:
    """Memory of a process now, in MB."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killed_three_times_two_thousand_jobs_are_those_of_an_undisturbed_run(tiny_model_directory, tmp_path):
    count = 2000
    bad = write_jobs(tmp_path, count)
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    command = [*COMMAND, "--model", str(tiny_model_directory), "--shard-size", "300", "-o"]
    start = lambda output: subprocess.Popen([*command, output], cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL)  # noqa: E731

    whole, memory = tmp_path / "whole", []
    process = start("whole")
    while process.poll() is None:
        time.sleep(0.5)
        if (done := spoken(whole)) and process.poll() is None:
            memory.append((done, resident(process.pid)))
    assert process.returncode == 1  # ten jobs have failed
    errors = [json.loads(line) for line in (whole / "errors.jsonl").read_text().splitlines()]
    assert [error["line"] for error in errors] == bad
    records = [json.loads(line) for line in (whole / "manifest.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == [f"job-{number}" for number in range(count)]
    early = max(size for done, size in memory if done <= count // 4)
    late = max(size for _, size in memory)
    print(f"memory: {early} MB after a quarter, {late} MB at most")
    assert late < 1.1 * early

    rng = random.Random(int.from_bytes(os.urandom(4)))
    killed = []
    for _ in range(3):
        before, process = spoken(tmp_path / "killed"), start("killed")
        wanted = before + rng.randrange(100, 500)
        while process.poll() is None and spoken(tmp_path / "killed") < wanted:
            time.sleep(0.05)
        assert process.poll() is None
        time.sleep(rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.append(spoken(tmp_path / "killed"))
    print(f"killed after {killed} jobs")
    assert start("killed").wait() == 1
    assert contents(tmp_path / "killed") == contents(whole)
