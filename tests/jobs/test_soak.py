"""Long proofs: thousands of jobs through the command, killed at random, are those of an undisturbed run."""

import os
import random
import signal
import sys
import time

import pytest
from helpers.batch_runs import contents, read, short_jobs, spoken, start, write

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


def with_bad_ones(jobs: list[str]) -> tuple[list[str], list[int]]:
    """Returns the jobs with the bad lines among them, and where these are, counted from 1."""
    rng, lines = random.Random(0), list(jobs)
    places = sorted([*rng.sample(range(1, len(jobs)), len(BAD) - 1), len(jobs)])
    for place, bad in reversed(list(zip(places, BAD, strict=True))):
        lines.insert(place, bad)
    return lines, [number for number, line in enumerate(lines, 1) if line in BAD]


def resident(pid: int) -> int:
    """Memory of a process now, in MB."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killed_three_times_two_thousand_jobs_are_those_of_an_undisturbed_run(tiny_model_directory, tmp_path):
    count = 2000
    lines, bad = with_bad_ones(short_jobs(count))
    write(tmp_path, lines)
    options = ["--model", str(tiny_model_directory), "--slots", "32", "--shard-size", "300", "-o"]

    whole, memory = tmp_path / "whole", []
    process = start(tmp_path, *options, "whole")
    while process.poll() is None:
        time.sleep(0.5)
        if (done := spoken(whole)) and process.poll() is None:
            memory.append((done, resident(process.pid)))
    assert process.returncode == 1  # ten jobs have failed
    errors = read(whole / "errors.jsonl")
    assert [error["line"] for error in errors] == bad
    records = read(whole / "manifest.jsonl")
    assert [record["id"] for record in records] == [f"job-{number}" for number in range(count)]
    early = max(size for done, size in memory if done <= count // 4)
    late = max(size for _, size in memory)
    print(f"memory: {early} MB after a quarter, {late} MB at most")
    assert late < 1.1 * early

    rng = random.Random(int.from_bytes(os.urandom(4)))
    killed = []
    for _ in range(3):
        before, process = spoken(tmp_path / "killed"), start(tmp_path, *options, "killed")
        wanted = before + rng.randrange(100, 500)
        while process.poll() is None and spoken(tmp_path / "killed") < wanted:
            time.sleep(0.05)
        assert process.poll() is None
        time.sleep(rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.append(spoken(tmp_path / "killed"))
    print(f"killed after {killed} jobs")
    assert start(tmp_path, *options, "killed").wait() == 1
    assert contents(tmp_path / "killed") == contents(whole)
