"""Records and their index: what is written is read, by number alone, and every damage has a name."""

import json
import shutil

import numpy as np
import pytest
from helpers import record_files

from spark_jax.data import records
from spark_jax.errors import SparkError
from spark_jax.text.tokenizer import build_tokenizer

TRAIN = "train" + records.INDEX_SUFFIX
SECOND = "train-00001-of-00003.array_record"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes", 16, 8)


@pytest.fixture(scope="module")
def lines():
    return record_files.utterances(50)


@pytest.fixture(scope="module")
def written(tmp_path_factory, lines, tokenizer):
    return record_files.write_tokens(tmp_path_factory.mktemp("records") / "tokens", lines, tokenizer)


@pytest.fixture
def folder(tmp_path, written):
    return shutil.copytree(written, tmp_path / "tokens")


def test_records_are_read_by_number_from_any_shard(folder, lines):
    reader = records.RecordReader(folder, "train", "tokens")
    assert len(reader) == 50 and reader.columns["tokens"].dtype == np.uint16
    numbers = [49, 0, 17, 16, 33, 0]
    for number, (fields, arrays) in zip(numbers, reader.read(numbers), strict=True):
        assert fields | {name: ids.tolist() for name, ids in arrays.items()} == lines[number]
    assert reader.read([]) == []
    assert reader.where(17) == f"{folder / SECOND}: record 0"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"train-0000{i}-of-00003.array_record" for i in range(3)
    ] + [TRAIN]


def test_an_encoded_record_has_one_form():
    arrays = {"b": np.arange(3, dtype=np.uint16), "a": np.zeros(0, np.uint8)}
    data = records.encode({"text": "é", "x": None}, arrays)
    assert data == records.encode({"text": "é", "x": None}, dict(reversed(arrays.items())))
    fields, found = records.decode(data)
    assert fields == {"text": "é", "x": None} and found["b"].tolist() == [0, 1, 2] and found["a"].dtype == np.uint8


@pytest.mark.parametrize("data", [b"", b"x" * 50, records.encode({}, {})[:-1], json.dumps({}).encode()])
def test_bytes_that_are_no_record(data):
    with pytest.raises(ValueError, match="deserializing"):
        records.decode(data)


@pytest.mark.parametrize("values", [[0.5], [[1]], [-1], [1 << 16], ["a"]])
def test_ids_that_a_record_cannot_hold(values):
    with pytest.raises(ValueError, match="ids "):
        records.as_codes(values)


def told(folder, match, kind="tokens", split="train"):
    with pytest.raises(SparkError, match=match) as caught:
        records.RecordReader(folder, split, kind)
    assert "\n" not in str(caught.value)


def test_faults_at_the_start(folder):
    told(folder, "test.index.safetensors: no such file; .* found splits: train", split="test")
    told(folder / "nowhere", "no such file; .* found splits: none")
    told(folder, "tokens records of version 1, expected audio records of version 1", kind="audio")
    shard = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(shard[: len(shard) // 2])
    told(folder, f"{SECOND}: {len(shard) // 2} bytes, its index says {len(shard)}")
    (folder / SECOND).unlink()
    told(folder, f"{SECOND}: No such file")
    for path in folder.glob("*.array_record"):
        path.unlink()
    told(folder, "00000-of-00003.*; .*00001-of-00003.*; .*00002-of-00003.*No such file")


@pytest.mark.parametrize("damage", ["truncated", "text", "column", "fields"])
def test_a_damaged_index_is_told_at_the_start(folder, damage):
    fields, columns = records.decode((folder / TRAIN).read_bytes())
    data = records.encode(fields, columns)
    if damage == "truncated":
        data = data[:-3]
    elif damage == "text":
        data = b"nothing of the kind"
    elif damage == "column":
        data = records.encode(fields, columns | {"tokens": columns["tokens"][:-1]})
    else:
        data = records.encode({name: fields[name] for name in ("version", "kind", "shards")}, columns)
    (folder / TRAIN).write_bytes(data)
    told(folder, "train.index.safetensors: not an index of records")


def test_an_empty_index(folder):
    records.write_index(
        folder, "empty", "tokens", [], {"tokens": np.zeros(0, int), "fault": np.zeros(0, int)}, {}, faults=[""]
    )
    told(folder, "empty.index.safetensors: holds no record", split="empty")


def test_a_garbled_record_is_told_when_it_is_read(folder):
    """Of the right size, so that only reading can tell; the others of its shard and of the same call are read."""
    record_files.garble(folder / SECOND, '"train-20"')
    found = records.RecordReader(folder, "train", "tokens").read([0, 19, 20, 21, 49])
    assert isinstance(found[2], SparkError) and f"{SECOND}: record 3: damaged" in str(found[2])
    assert all(isinstance(record, records.Record) for record in found[:2] + found[3:])


def test_a_shard_with_a_garbled_footer_is_told_when_it_is_opened(folder):
    data = bytearray((folder / SECOND).read_bytes())
    data[-(1 << 16) :] = b"\xa5" * (1 << 16)
    (folder / SECOND).write_bytes(data)
    reader = records.RecordReader(folder, "train", "tokens")
    assert isinstance(reader.read([0])[0], records.Record)
    with pytest.raises(SparkError, match=SECOND):
        reader.read([17])
    shutil.copy(folder / SECOND.replace("00001-", "00000-"), folder / SECOND)  # sound, of the same size, but another
    reader = records.RecordReader(folder, "train", "tokens")
    reader._shards[1] = reader._shards[1]._replace(records=12)
    with pytest.raises(SparkError, match=f"{SECOND}: holds 17 records, its index says 12"):
        reader.read([17])


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(SparkError, match="nowhere/a.array_record: cannot be written"):
        records.ShardWriter(tmp_path / "nowhere" / "a.array_record")
    writer = records.ShardWriter(tmp_path / "a.array_record")
    writer.write(b"1")
    writer.discard()
    assert list(tmp_path.iterdir()) == []
