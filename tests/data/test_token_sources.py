"""Sequences of JSON Lines and of records: the same batches, read in shares, with every fault named."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import record_files

from spark_jax.data import pipeline, records, sources, token_sources, tokens
from spark_jax.data.config import SourceConfig, TokenDataConfig
from spark_jax.errors import SparkError
from spark_jax.text.tokenizer import build_tokenizer

DATA = TokenDataConfig(row_length=96, batch_rows=4, controllable_weight=0.5, semantic_noise=0.2)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes", 16, 8)


@pytest.fixture(scope="module")
def lines():
    found = record_files.utterances(60)
    found[3]["language"], found[5]["gender"], found[7]["text"] = "fr", "unknown", "a long sentence " * 8
    return found


@pytest.fixture
def jsonl(tmp_path, lines):
    path = tmp_path / "tokens.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def folder(tmp_path, lines, tokenizer):
    return record_files.write_tokens(tmp_path / "records", lines, tokenizer, dropped={"too fast": 4})


def read(source, tokenizer, training=True, **changes):
    return token_sources.read_sequences(
        source, tokenizer, dataclasses.replace(DATA, **changes), "train", training, 50.0
    )


def batches(sequences, count, **share):
    return list(pipeline.batches(sequences.plan(4, 11), sequences.load, count, 11, **share))


def test_records_and_json_lines_give_the_same_batches(jsonl, folder, tokenizer):
    ours, theirs = read(str(folder), tokenizer), read(jsonl, tokenizer)
    for one, other in zip(batches(ours, 30), batches(theirs, 30), strict=True):  # several epochs
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    too_long = {"tts: too long": 1, "controllable_tts: too long": 1}
    labels = {"controllable_tts: unsupported language": 1, "controllable_tts: unknown gender": 1}
    assert theirs.dropped == too_long | labels
    assert ours.dropped == too_long | labels | {"too fast": 4}
    first, second = ours.summary(), theirs.summary()
    assert (first["sequences"], first["tokens"]) == (second["sequences"], second["tokens"])


def test_a_restored_iterator_goes_on_with_the_same_batches(folder, tokenizer):
    """In the middle of a later epoch, with noise."""
    whole = batches(read(str(folder), tokenizer), 30)

    def make():
        sequences = read(str(folder), tokenizer)
        return pipeline.batches(sequences.plan(4, 11), sequences.load, 30, 11)

    iterator = make()
    for _ in range(17):
        next(iterator)
    resumed = make()
    resumed.set_state(iterator.get_state())
    for ours, theirs in zip(resumed, whole[17:], strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("count", [2, 4])
def test_a_process_reads_its_rows_records_only(folder, tokenizer, count, monkeypatch):
    """Counted at the files: together the processes read what one reads, and each of them its share."""
    read_records, asked = records.RecordReader.read, []

    def counted(self, numbers):
        asked.extend(np.asarray(numbers).tolist())
        return read_records(self, numbers)

    def run(**share):
        sequences = read(str(folder), tokenizer)
        asked.clear()
        made = batches(sequences, 6, **share)
        return made, sorted(asked)

    monkeypatch.setattr(records.RecordReader, "read", counted)
    [whole, all_of_them], parts = run(), [run(process_index=i, process_count=count) for i in range(count)]
    assert sorted(number for _, numbers in parts for number in numbers) == all_of_them
    assert max(len(numbers) for _, numbers in parts) < len(all_of_them) * 1.4 / count
    for number, batch in enumerate(whole):
        for name, values in batch.items():
            together = np.concatenate([made[number][name] for made, _ in parts])
            np.testing.assert_array_equal(together, values, err_msg=name)


def test_a_mixture_of_files_folders_and_patterns(jsonl, folder, tokenizer):
    shutil.copytree(folder, folder.parent / "records2")
    mixture = (SourceConfig(jsonl, 0.5), SourceConfig(str(folder.parent / "records*"), 2.0))
    sequences = read(mixture, tokenizer)
    one, alone = read(jsonl, tokenizer).summary(), sequences.summary()
    assert alone["sequences"] == pytest.approx(4.5 * one["sequences"])
    assert alone["dropped"]["too fast"] == 8
    for batch in batches(sequences, 3):
        assert batch["segment_ids"].max() >= 1


def test_the_report_is_a_line_and_a_file(jsonl, folder, tokenizer, tmp_path):
    parts = {"train": read(str(folder), tokenizer), "validation": read(jsonl, tokenizer, training=False)}
    line = sources.DataReport(tmp_path / "run" / "data.json", parts).line()
    assert "\n" not in line and "train: 87.50 sequences" in line and "4 too fast" in line
    written = json.loads((tmp_path / "run" / "data.json").read_text())
    assert written["train"]["dropped"]["too fast"] == 4 and written["validation"]["sequences"] == 87.5
    assert sources.DataReport(tmp_path / "run" / "data.json", parts).line() == line  # a resumed run on the same data
    mixed = {"train": read(jsonl, tokenizer, tts_weight=0.5)}
    changed = sources.DataReport(tmp_path / "run" / "data.json", mixed | {"validation": parts["validation"]}).line()
    assert "data.json had other figures before" in changed


def test_the_report_follows_what_is_skipped_when_it_is_read(folder, jsonl, tokenizer, tmp_path):
    record_files.garble(folder / "train-00001-of-00003.array_record", '"train-30"')
    path, sequences = tmp_path / "data.json", read(str(folder), tokenizer, on_error="skip")
    report = sources.DataReport(path, {"train": sequences, "validation": read(jsonl, tokenizer)})
    before = json.loads(path.read_text())
    assert report.update() == {} and "unreadable" not in before["train"]["dropped"]
    batches(sequences, 60)  # several epochs
    skipped = sequences.dropped["unreadable"]
    assert skipped > 1 and report.update() == {"skipped_records": skipped}
    before["train"]["dropped"]["unreadable"] = skipped
    assert json.loads(path.read_text()) == before
    path.unlink()
    assert report.update() == {"skipped_records": skipped} and not path.exists()  # it says nothing new


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((), "list of sources is empty"),
        ("nowhere.jsonl", "nowhere.jsonl: cannot be read"),
        ("{}/no*thing", "no.thing: matches nothing"),
        ((SourceConfig("a", 0.0),), "source a: weight is 0.0"),
        ((SourceConfig("a", float("nan")),), "weight is nan"),
        ((SourceConfig("a", True),), "weight is True"),
        ("{}", "train.index.safetensors: no such file"),
    ],
)
def test_sources_that_are_none(tokenizer, tmp_path, source, message):
    source = source.format(tmp_path) if isinstance(source, str) else source
    with pytest.raises(SparkError, match=message):
        read(source, tokenizer)


@pytest.mark.parametrize("setting", [{"common_globals": True}, {"fragment_weight": 0.5}])
def test_what_needs_a_small_corpus_is_refused_for_records(folder, tokenizer, setting):
    with pytest.raises(SparkError, match=f"{min(setting)}: .*records is a folder of records, expected a JSON Lines"):
        read(str(folder), tokenizer, **setting)


def test_common_globals_of_a_file_are_its_training_splits(tmp_path, tokenizer):
    lines = record_files.utterances(4) + record_files.utterances(2, 1, "validation")
    for line in lines[:3]:
        line["global_ids"] = [1, 2, 3, 4]
    path = tmp_path / "tokens.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = dataclasses.replace(DATA, common_globals=True)
    for split, count in (("train", 4), ("validation", 2)):
        sequences = token_sources.read_sequences(str(path), tokenizer, config, split, False, 50.0)
        for example in sequences._read(np.arange(2 * count))[::2]:
            codes = tokenizer.global_codes[example.ids]
            assert codes[codes >= 0].tolist() == [1, 2, 3, 4]


def test_another_tokenizer_is_told_at_the_start(folder, tokenizer, monkeypatch):
    encode = type(tokenizer).encode_text
    message = "array_record: record 0: .* tokens as tts, its index says .* expected the tokenizer"
    with monkeypatch.context() as patched:
        patched.setattr(type(tokenizer), "encode_text", lambda self, text: encode(self, text)[::2])
        with pytest.raises(SparkError, match=message):
            read(str(folder), tokenizer)
    smaller = build_tokenizer("bytes", 4, 8)  # of other codes
    with pytest.raises(SparkError, match=r"array_record: record \d+: semantic id .* is out of range"):
        read(str(folder), smaller)


def test_a_record_that_cannot_be_decoded_is_an_error_or_counted(folder, tokenizer, caplog):
    place = folder / "train-00001-of-00003.array_record"
    record_files.garble(place, '"train-30"')
    message = "train-00001-of-00003.array_record: record 10: damaged"
    with pytest.raises(SparkError, match=message):
        batches(read(str(folder), tokenizer), 30)
    sequences = read(str(folder), tokenizer, on_error="skip")
    [epoch] = [sequences.plan(4, 11)(0)]
    made = [sequences.load(rows, [np.random.default_rng(0)] * 4) for rows in epoch]
    assert sequences.dropped["unreadable"] >= 1 and message in caplog.text
    # The row lacks that sequence, and is in order otherwise.
    planned = sum(len(row) for rows in epoch for row in rows)
    found = sum(len(np.unique(row[row > 0])) for batch in made for row in batch["segment_ids"])
    assert found == planned - sequences.dropped["unreadable"]
    with pytest.raises(SparkError, match="no sequence of 60 utterances fits 9 tokens; .*60 tts: too long"):
        read(str(folder), tokenizer, max_length=9)


def test_memory_is_a_few_bytes_a_record(folder, tokenizer):
    reader = records.RecordReader(folder, "train", "tokens")
    source = token_sources.RecordTokens(reader, tokenizer, 96)
    sequences = tokens.TokenSequences([source], tokenizer, 96)
    assert sum(column.nbytes for column in reader.columns.values()) == 3 * len(reader)
    order = pipeline.weighted_order(sequences._sources.weights(), np.random.default_rng(0))
    assert order.nbytes == 4 * len(order) <= 8 * len(reader)
