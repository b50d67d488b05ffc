"""Corpora become records: all of them, in order, the same bytes by any number of workers and after any stop."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import record_files
from helpers.tiny_config import tiny

from spark_jax.cli import main as cli
from spark_jax.data import audio_sources, pipeline, records
from spark_jax.data.codec import CodecExamples
from spark_jax.data.config import CodecDataConfig
from spark_jax.data.corpus_audio import read_audio
from spark_jax.errors import SparkError
from spark_jax.prepare import records as make_records
from spark_jax.prepare.conversions import AudioConversion, TokenConversion
from spark_jax.text.tokenizer import build_tokenizer

CASE = Path(__file__).parents[1] / "assets" / "cases" / "corpus_bad"
SPLITS = {"train": 40, "validation": 5, "test": 3}


@pytest.fixture
def conversion(tmp_path):
    build_tokenizer("bytes", 16, 8).save(tmp_path / "tokenizer")
    (tmp_path / "model.yaml").write_text("bicodec: {speaker_encoder: {token_num: 4}}\n")
    return TokenConversion(str(tmp_path / "tokenizer"), str(tmp_path / "model.yaml"))


@pytest.fixture
def jsonl(tmp_path):
    """Splits mixed as in a real file."""
    lines = []
    for seed, (split, count) in enumerate(SPLITS.items()):
        lines += record_files.utterances(count, seed, split)
    lines = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]
    return write(tmp_path / "tokens.jsonl", lines)


def write(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def back(folder, split, kind="tokens"):
    reader = records.RecordReader(folder, split, kind)
    return [
        fields | {name: ids.tolist() for name, ids in arrays.items()}
        for fields, arrays in reader.read(range(len(reader)))
    ], reader


def test_every_line_becomes_a_record_in_its_place(jsonl, conversion, tmp_path, capsys):
    make_records.convert(conversion, jsonl, tmp_path / "out", 4)
    lines = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert records.splits(tmp_path / "out") == sorted(SPLITS)
    for split, count in SPLITS.items():
        found, reader = back(tmp_path / "out", split)
        assert found == [line for line in lines if line["split"] == split] and len(found) == count
        assert reader.columns["tokens"].tolist() == [
            len(line["text"].encode()) + 4 + len(line["semantic_ids"]) for line in found
        ]
    assert "train: 40 records, nothing dropped" in capsys.readouterr().err
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(names) <= 3 * (4 + 1) and all(name.endswith((".array_record", ".safetensors")) for name in names)


@pytest.mark.parametrize("shards", [1, 2, 5, 97])
def test_spans_hold_every_line_once(jsonl, conversion, tmp_path, shards):
    size = jsonl.stat().st_size
    job = make_records.Job(conversion, jsonl, tmp_path, shards, "raise", size)
    found = [line for shard in range(shards) for _, line in make_records.lines(jsonl, *job.span(shard))]
    assert b"".join(found) == jsonl.read_bytes() and len(found) == sum(SPLITS.values())


@pytest.mark.slow  # three processes that import JAX
def test_workers_change_nothing(jsonl, conversion, tmp_path):
    make_records.convert(conversion, jsonl, tmp_path / "one", 3)
    command = [
        sys.executable,
        "-m",
        "spark_jax.cli.main",
        "prepare",
        "token-records",
        jsonl,
        tmp_path / "two",
        "--tokenizer",
        conversion.tokenizer,
        "--model",
        conversion.model,
        "--shards",
        3,
        "--workers",
        2,
    ]
    subprocess.run([str(part) for part in command], check=True, timeout=300)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_stopped_run_goes_on_where_it_stopped(jsonl, conversion, tmp_path, monkeypatch):
    make_records.convert(conversion, jsonl, tmp_path / "whole", 4)
    converter, converted = make_records._converter(conversion), []

    def stopping(limit):
        def convert(record):
            if len(converted) == limit:
                raise KeyboardInterrupt
            converted.append(record["index"])
            return converter(record)

        monkeypatch.setattr(make_records, "_converter", lambda conversion: convert)

    stopping(30)
    with pytest.raises(KeyboardInterrupt):
        make_records.convert(conversion, jsonl, tmp_path / "out", 4)
    left = list((tmp_path / "out").glob(".*.array_record*"))
    assert records.splits(tmp_path / "out") == [] and left == []  # no half shard
    finished = {name for name in content(tmp_path / "out") if name.startswith(".shard")}
    assert len(finished) == 2
    converted.clear()
    stopping(None)
    make_records.convert(conversion, jsonl, tmp_path / "out", 4)
    assert 18 <= len(converted) < 48 and content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_finished_shard_of_another_input_is_made_anew(jsonl, conversion, tmp_path, monkeypatch):
    monkeypatch.setattr(make_records.records, "write_index", lambda *arguments, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_records.convert(conversion, jsonl, tmp_path / "out", 2)
    monkeypatch.undo()
    lines = [json.loads(line) for line in jsonl.read_text().splitlines()]
    lines[0]["text"] = lines[0]["text"][::-1]  # of the same length
    write(jsonl, lines)
    make_records.convert(conversion, jsonl, tmp_path / "out", 2)
    found, _ = back(tmp_path / "out", lines[0]["split"])
    assert found[0]["text"] == lines[0]["text"]


def test_what_cannot_be_used_is_an_error_or_counted(jsonl, conversion, tmp_path, capsys):
    lines = record_files.utterances(8)
    lines[1]["semantic_ids"], lines[2]["text"], lines[3]["speed"], lines[4]["language"] = [16], "", 11.0, "fr"
    del lines[5]["pitch"], lines[7]["split"]
    write(jsonl, lines)
    with jsonl.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(SparkError, match="tokens.jsonl:2: utterance train-1: semantic id 16 is out of range"):
        make_records.convert(conversion, jsonl, tmp_path / "raise", 2)
    make_records.convert(conversion, jsonl, tmp_path / "skip", 2, on_error="skip")
    found, reader = back(tmp_path / "skip", "train")
    assert [line["index"] for line in found] == ["train-0", "train-4", "train-5", "train-6"]
    assert reader.fields["dropped"] == {"unusable": 2, "too fast": 1}
    assert [reader.fields["faults"][fault] for fault in reader.columns["fault"]] == [
        "",
        "unsupported language",
        "no pitch",
        "",
    ]
    output = capsys.readouterr().err
    assert "train: 4 records, 3 dropped (1 too fast, 2 unusable)" in output
    assert "of no split: 2 dropped (1 missing fields, 1 unreadable)" in output


def test_a_folder_of_records_is_not_written_over(jsonl, conversion, tmp_path):
    make_records.convert(conversion, jsonl, tmp_path / "out", 1)
    with pytest.raises(SparkError, match="holds records of test, train, validation already"):
        make_records.convert(conversion, jsonl, tmp_path / "out", 1)
    with pytest.raises(SparkError, match="nowhere.jsonl: No such file"):
        make_records.convert(conversion, tmp_path / "nowhere.jsonl", tmp_path / "other", 1)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(SparkError, match="empty.jsonl: no record"):
        make_records.convert(conversion, tmp_path / "empty.jsonl", tmp_path / "other", 1)


@pytest.fixture
def corpus(tmp_path):
    """Mono FLAC, which goes in as it is; stereo and WAV, which do not."""
    folder, lines = tmp_path / "corpus", []
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (length, name, channels) in enumerate([(9000, "a.flac", 1), (20_000, "b.flac", 2), (12_000, "c.wav", 1)]):
        samples = rng.integers(-8000, 8000, (length, channels)).astype(np.int16)
        soundfile.write(folder / name, samples, 16_000, subtype="PCM_16")
        lines.append({"index": f"u{i}", "wav_path": name, "duration": length / 16_000, "split": "train"})
    write(folder / "metadata.jsonl", lines)
    return folder


def test_audio_records_give_the_batches_of_the_corpus(corpus, tmp_path):
    ids = [(f"u{i}", list(range(count))) for i, count in enumerate((28, 62))]
    lines = [{"index": index, "semantic_ids": codes, "global_ids": [1] * 32} for index, codes in ids]
    tokens = write(tmp_path / "tokens.jsonl", lines)
    conversion = AudioConversion(str(corpus), str(tokens), 16_000)
    make_records.convert(conversion, corpus / "metadata.jsonl", tmp_path / "out", 2)
    reader = records.RecordReader(tmp_path / "out", "train", "audio")
    assert reader.columns["samples"].tolist() == [9000, 20_000, 12_000]
    assert reader.columns["tokens"].tolist() == [28, 62, 0]
    stored = [record.arrays["audio"].tobytes() for record in reader.read([0, 1, 2])]
    assert stored[0] == (corpus / "a.flac").read_bytes() != stored[1]
    assert all(soundfile.info(io.BytesIO(audio)).format == "FLAC" for audio in stored)

    def batches(source, **options):
        parts = audio_sources.read_sources(str(source), tiny(), CodecDataConfig(), "train", options.pop("tokens", None))
        examples = CodecExamples(parts, tiny(), 0.4, 0.1, **options)
        return list(pipeline.batches(examples.plan(2, 3), examples.load, 4, 3))

    for options, file in (({}, None), ({"from_tokens": True}, str(tokens))):
        pairs = zip(batches(tmp_path / "out", **options), batches(corpus, tokens=file, **options), strict=True)
        for ours, theirs in pairs:
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])


def test_audio_records_that_differ_from_their_index(corpus, tmp_path):
    conversion = AudioConversion(str(corpus), None, 16_000)
    make_records.convert(conversion, corpus / "metadata.jsonl", tmp_path / "out", 1)
    with pytest.raises(SparkError, match="out: records of sample rate 16000, expected 8000"):
        audio_sources.RecordAudio(records.RecordReader(tmp_path / "out", "train", "audio"), 8000)
    reader = records.RecordReader(tmp_path / "out", "train", "audio")
    source = audio_sources.RecordAudio(reader, 16_000)
    assert len(source.read(1)[0]) == 20_000
    for name in ("samples", "tokens"):
        reader.columns[name][1] += 1
        with pytest.raises(SparkError, match=f"array_record: record 1: .* {name}, its index says"):
            source.read(1)
        reader.columns[name][1] -= 1


def test_audio_that_cannot_be_read_is_an_error_or_counted(corpus, tmp_path):
    (corpus / "a.flac").write_bytes((corpus / "a.flac").read_bytes()[:3000])
    conversion = AudioConversion(str(corpus), None, 16_000)
    with pytest.raises(SparkError, match="metadata.jsonl:1: utterance u0: .*a.flac: not readable as audio"):
        make_records.convert(conversion, corpus / "metadata.jsonl", tmp_path / "out", 1)
    make_records.convert(conversion, corpus / "metadata.jsonl", tmp_path / "out", 1, on_error="skip")
    reader = records.RecordReader(tmp_path / "out", "train", "audio")
    assert len(reader) == 2 and reader.fields["dropped"] == {"unreadable audio": 1}


def test_audio_of_another_rate_is_resampled(corpus, tmp_path):
    conversion = AudioConversion(str(corpus), None, 24_000)
    make_records.convert(conversion, corpus / "metadata.jsonl", tmp_path / "out", 1)
    source = audio_sources.RecordAudio(records.RecordReader(tmp_path / "out", "train", "audio"), 24_000)
    assert source.seconds.tolist() == [0.5625, 1.25, 0.75]
    for number, length in enumerate((13_500, 30_000, 18_000)):
        samples, record = source.read(number)
        assert len(samples) == length and record["duration"] == round(length / 24_000, 3)


@pytest.mark.parametrize("content", ["wave", "m4a"])
def test_bytes_of_any_format_become_flac(tmp_path, content):
    if content == "m4a":
        pytest.importorskip("av", reason="pip install 'spark-jax[av]'")
    name = {"wave": "left_silent.wav", "m4a": "recording.m4a"}[content]
    expected = read_audio(CASE.parent / name, 16_000)
    convert = AudioConversion(str(CASE.parent), None, 16_000).converter()
    item = convert({"index": 0, "wav_path": name, "split": "train"})
    assert item.columns == {"samples": len(expected), "tokens": 0} and b"fLaC" in item.data


def test_a_corpus_of_what_people_bring_becomes_records(tmp_path):
    """Lengths are the files', NaN is counted; so are silence, a missing file and rows that are none."""
    folder = tmp_path / "corpus"
    shutil.copytree(CASE, folder)
    soundfile.write(folder / "silent.flac", np.zeros(9000), 16_000)
    stream = (CASE.parent / "header_length_0.wav").read_bytes()  # never closed
    (folder / "stream.wav").write_bytes(stream)
    lines = [json.loads(line) for line in (CASE / "metadata.jsonl").read_text().splitlines()]
    lines += [{"index": 3, "wav_path": name, "split": "train"} for name in ("silent.flac", "nowhere.flac", None, "")]
    lines.append({"index": 4, "wav_path": "stream.wav", "split": "train"})
    lines.append({"index": True, "wav_path": "wavs/a.wav", "split": "train"})
    write(folder / "metadata.jsonl", lines)
    conversion = AudioConversion(str(folder), None, 16_000)
    with pytest.raises(SparkError, match="metadata.jsonl:3: utterance 2: .*nan.wav: 16000 of 16000 samples are NaN"):
        make_records.convert(conversion, folder / "metadata.jsonl", tmp_path / "raise", 1)
    make_records.convert(conversion, folder / "metadata.jsonl", tmp_path / "out", 1, on_error="skip")
    reader = records.RecordReader(tmp_path / "out", "train", "audio")
    samples = (len(stream) - 44) // 2
    assert reader.columns["samples"].tolist() == [35_200, 35_200, samples]
    source = audio_sources.RecordAudio(reader, 16_000)
    np.testing.assert_array_equal(source.read(2)[0], np.frombuffer(stream[44:], np.int16) / np.float32(32768))
    assert reader.fields["dropped"] == {"not finite": 1, "silent": 1, "no such file": 1, "unusable": 3}
    assert [record.fields["duration"] for record in reader.read([0, 1])] == [2.2, 2.2]


def test_ids_that_go_into_audio_records_are_looked_at(corpus, tmp_path):
    lines = [{"index": "u0", "semantic_ids": [1, 2], "global_ids": [70_000]}, {"index": [], "global_ids": []}]
    tokens = write(tmp_path / "tokens.jsonl", [lines[0], lines[1] | {"semantic_ids": [1]}])
    with pytest.raises(SparkError, match="tokens.jsonl: utterance 'u0': ids from 70000"):
        AudioConversion(str(corpus), str(tokens), 16_000).converter()
    AudioConversion(str(corpus), str(tokens), 16_000, "skip").converter()
    short = write(tmp_path / "short.jsonl", [{"index": "u1", "semantic_ids": [1] * 62, "global_ids": [1] * 31}])
    with pytest.raises(SparkError, match="short.jsonl: utterance 'u1': global_ids has 31 ids, expected 32"):
        audio_sources.read_sources(str(corpus), tiny(), CodecDataConfig(), "train", str(short))


def test_the_commands_write_records(jsonl, conversion, corpus, tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["prepare", *map(str, arguments), "--shards", "2", "--workers", "1"])
        return ended.value.code or 0, capsys.readouterr().err

    tokenizer = ("--tokenizer", conversion.tokenizer, "--model", conversion.model)
    code, told = run("token-records", jsonl, tmp_path / "tokens", *tokenizer)
    assert code == 0 and "train: 40 records, nothing dropped" in told
    code, told = run("audio-records", corpus, tmp_path / "audio")
    assert code == 0 and "train: 3 records, nothing dropped" in told
    assert records.RecordReader(tmp_path / "audio", "train", "audio").fields["sample_rate"] == 16_000
    code, told = run("token-records", jsonl, tmp_path / "tokens", *tokenizer)
    assert code == 2 and told.startswith("error: ") and told.count("\n") == 1 and "already" in told
    code, told = run("audio-records", corpus, tmp_path / "other", "--sample-rate", 24_000)
    assert code == 0 and "train: 3 records, nothing dropped" in told
