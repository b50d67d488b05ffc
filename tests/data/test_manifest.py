import json

import pytest

from spark_jax.data import manifest
from spark_jax.data.sources import DropCounter
from spark_jax.errors import SparkError


def test_a_corpus_is_read_by_split(tmp_path):
    records = [{"index": str(i), "split": "ab"[i % 2], "wav_path": f"{i}.flac", "duration": 1.0} for i in range(3)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [record["index"] for record in manifest.read_corpus(tmp_path, "a")] == ["0", "2"]
    assert manifest.read_corpus(tmp_path, None)[1]["wav_path"] == str(tmp_path / "1.flac")
    with pytest.raises(SparkError, match="no record with split 'c'"):
        manifest.read_corpus(tmp_path, "c")
    with pytest.raises(SparkError, match="metadata.jsonl:1: field 'text' is missing"):
        manifest.read_corpus(tmp_path, "a", ["text"])


@pytest.mark.parametrize("line", ["{", "3", "[]"])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "tokens.jsonl"
    path.write_text('{"index": 1}\n' + line + "\n")
    with pytest.raises(SparkError, match="tokens.jsonl:2: not a JSON object"):
        manifest.read_jsonl(path, ["index"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SparkError, match="nowhere.jsonl: cannot be read"):
        manifest.read_jsonl(tmp_path / "nowhere.jsonl", [])


def test_what_is_no_record_can_be_skipped_and_counted(tmp_path, caplog):
    path = tmp_path / "tokens.jsonl"
    path.write_text('{"index": 1, "text": "a"}\n{\n{"index": 2}\n[]\n{"index": 3, "text": "c"}\n')
    dropped = DropCounter("skip")
    assert [record["index"] for record in manifest.read_jsonl(path, ["index", "text"], None, dropped)] == [1, 3]
    assert dropped.counts == {"unreadable": 2, "missing fields": 1}
    with pytest.raises(SparkError, match="no record"):
        manifest.read_jsonl(path, ["index", "voice"], None, DropCounter("skip"))
    path.write_text("{\n" * 50 + '{"index": 1}\n')
    caplog.clear()
    dropped = DropCounter("skip")
    assert len(manifest.read_jsonl(path, ["index"], None, dropped)) == 1 and dropped.counts == {"unreadable": 50}
    assert len(caplog.records) == 10 and "tokens.jsonl:1: not a JSON object" in caplog.text
