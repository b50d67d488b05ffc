"""Corpora as people bring them: the run goes on, every utterance is as long as its file, the rest is counted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import tiny_model

from spark_jax.cli import main as cli
from spark_jax.data import manifest
from spark_jax.data.sources import DropCounter
from spark_jax.errors import SparkError
from spark_jax.inference.codec import Codec
from spark_jax.model_directory import directory as model_directory
from spark_jax.prepare import encode
from spark_jax.wav2vec2.model import num_frames

CASE = Path(__file__).parents[1] / "assets" / "cases" / "corpus_bad"


@pytest.fixture(scope="module")
def codec(tiny_model_directory):
    model = model_directory.load(tiny_model_directory, parts=("bicodec", "wav2vec2"))
    return Codec(model.config, model.variables, batch_length=200)


def corpus_of(folder, lines, extra=b""):
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (folder / "metadata.jsonl").write_bytes(content + extra)
    return folder


def tokens(path):
    return {line["index"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_the_length_is_the_files_and_nan_is_dropped(codec, tmp_path, capsys):
    dropped = DropCounter("skip")
    encode.encode_corpus(manifest.read_corpus(CASE, None), tmp_path / "out.jsonl", codec, dropped=dropped)
    lines = tokens(tmp_path / "out.jsonl")
    expected = num_frames(35_200, codec.config.wav2vec2)
    assert {index: len(line["semantic_ids"]) for index, line in lines.items()} == {0: expected, 1: expected}
    assert [line["duration"] for line in lines.values()] == [2.2, 2.2]
    assert lines[0]["semantic_ids"] == lines[1]["semantic_ids"]
    assert dropped.counts == {"not finite": 1} and dropped.faults == 1
    assert "2 utterances, 1 dropped (1 not finite)" in capsys.readouterr().err


@pytest.fixture
def corpus(tmp_path):
    """What can be used beside one of each kind that cannot; durations are of other files, or missing."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    speech = tiny_model.speech
    files = {
        "good": (speech(0.7), 16_000, "PCM_16"),
        "24k": (np.interp(np.arange(0, 16_000, 2 / 3), np.arange(16_000), speech(1.0, 1)), 24_000, "PCM_16"),
        "right": (np.stack([0 * speech(0.5), speech(0.5)], axis=1), 16_000, "PCM_16"),
        "silent": (np.zeros(16_000), 16_000, "PCM_16"),
        "nan": (np.where(np.arange(16_000) == 9, np.nan, 0.1), 16_000, "FLOAT"),
        "short": (speech(0.01), 16_000, "PCM_16"),
        "none": (np.zeros(0), 16_000, "PCM_16"),
    }
    for name, (samples, rate, subtype) in files.items():
        soundfile.write(folder / f"{name}.wav", samples, rate, subtype=subtype)
    (folder / "text.wav").write_text("no audio")
    names = [*files, "text", "nowhere"]
    lines = [{"index": name, "wav_path": f"{name}.wav", "text": name, "split": "a", "duration": 0.3} for name in names]
    del lines[0]["duration"]
    lines[1]["duration"] = None
    lines += [lines[0], {"index": None, "wav_path": "good.wav"}, {"index": 7, "wav_path": None}, {"index": "half"}]
    return corpus_of(folder, lines, b'\n  \n{"index": "caf\xe9", "wav_path": "good.wav"}\n{broken\n\xef\xbb\xbf\n')


COUNTS = {
    "silent": 1,
    "not finite": 1,
    "too short": 1,
    "no samples": 1,
    "unreadable audio": 1,
    "no such file": 1,
    "index given twice": 1,
    "unusable": 2,
    "missing fields": 1,
    "unreadable": 2,
}


def test_the_run_goes_on_and_counts_by_reason(corpus, codec, tiny_model_directory, tmp_path, capsys, caplog):
    dropped = DropCounter("skip")
    records = manifest.read_corpus(corpus, None, dropped=dropped)
    encode.encode_corpus(records, tmp_path / "out.jsonl", codec, dropped=dropped)
    lines = tokens(tmp_path / "out.jsonl")
    assert list(lines) == ["good", "24k", "right"] and dropped.counts == COUNTS
    assert [line["duration"] for line in lines.values()] == [0.7, 1.0, 0.5]
    for name, line in lines.items():
        expected = num_frames(round(line["duration"] * 16_000), codec.config.wav2vec2)
        assert len(line["semantic_ids"]) == expected, name
        assert len(line["global_ids"]) == 32

    def run(*options):
        output = tmp_path / f"{len(options)}.jsonl"
        with pytest.raises(SystemExit) as ended:
            cli.main(["prepare", "encode", *map(str, (corpus, output, "--model", tiny_model_directory)), *options])
        return ended.value.code, output, capsys.readouterr().err

    code, output, told = run()
    assert code == 1 and output.read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    assert "3 utterances, 12 dropped (" in told
    assert "metadata.jsonl:16: not UTF-8 text (byte 14 is 0xe9)" in caplog.text
    code, output, told = run("--on-error", "raise")
    assert code == 2 and told.count("\n") == 1 and not output.exists()


def test_a_run_that_was_killed_goes_on_past_bad_files(corpus, codec, tmp_path, monkeypatch):
    records = manifest.read_corpus(corpus, None, dropped=DropCounter("skip"))
    encode.encode_corpus(records, tmp_path / "whole.jsonl", codec, dropped=DropCounter("skip"))
    batches = encode._encode

    def stops(*arguments):
        for i, record in enumerate(batches(*arguments)):
            if i == 1:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(encode, "_encode", stops)
    with pytest.raises(KeyboardInterrupt):
        encode.encode_corpus(records, tmp_path / "out.jsonl", codec, dropped=DropCounter("skip"))
    monkeypatch.undo()
    dropped = DropCounter("skip")
    encode.encode_corpus(records, tmp_path / "out.jsonl", codec, dropped=dropped)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert dropped.counts["not finite"] == 1  # told again


def test_a_file_that_is_longer_than_its_header_says_is_encoded_whole(codec, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tiny_model.speech(2.5), 16_000)
    soundfile.write(tmp_path / "b.wav", tiny_model.speech(0.6), 16_000)
    lines = [{"index": name, "wav_path": f"{name}.wav"} for name in "ab"]
    records = manifest.read_corpus(corpus_of(tmp_path, lines), None)
    monkeypatch.setattr(encode, "audio_lengths", lambda paths, rate: [9600] * len(paths))
    encode.encode_corpus(records, tmp_path / "out.jsonl", codec)
    found = {index: len(line["semantic_ids"]) for index, line in tokens(tmp_path / "out.jsonl").items()}
    assert found == {"a": num_frames(40_000, codec.config.wav2vec2), "b": num_frames(9600, codec.config.wav2vec2)}


def test_too_long_is_what_the_model_does_not_allow(codec, tmp_path, monkeypatch):
    """By the header alone: the file is not read."""
    shutil.copy(CASE / "wavs" / "a.wav", tmp_path / "a.wav")
    records = manifest.read_corpus(corpus_of(tmp_path, [{"index": 0, "wav_path": "a.wav"}]), None)
    monkeypatch.setattr(encode, "audio_lengths", lambda paths, rate: [(codec.config.max_semantic_tokens + 2) * 320])
    monkeypatch.setattr(encode, "read_audio", lambda *arguments: 1 / 0)
    with pytest.raises(SparkError, match="out.jsonl: not written, as no utterance can be used; .*1 too long"):
        encode.encode_corpus(records, tmp_path / "out.jsonl", codec)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "metadata.jsonl"]


@pytest.mark.parametrize("text", ["half \ud800", "\udfff"])
def test_half_a_surrogate_pair(codec, tmp_path, text):
    soundfile.write(tmp_path / "a.wav", tiny_model.speech(0.6), 16_000)
    lines = [{"index": i, "wav_path": "a.wav", "text": each} for i, each in enumerate(("a", text))]
    records, dropped = manifest.read_corpus(corpus_of(tmp_path, lines), None), DropCounter("skip")
    encode.encode_corpus(records, tmp_path / "out.jsonl", codec, dropped=dropped)
    assert list(tokens(tmp_path / "out.jsonl")) == [0] and dropped.counts == {"unusable": 1}
