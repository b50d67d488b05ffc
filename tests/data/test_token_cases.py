"""Token records as people bring them: nothing is trained that the grammar never makes, and each fault is named."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import record_files

from spark_jax.cli import main as cli
from spark_jax.convert import assemble
from spark_jax.data import manifest, token_sources
from spark_jax.data.config import TokenDataConfig
from spark_jax.data.sources import DropCounter
from spark_jax.data.token_check import CodeSizes, check_ids
from spark_jax.errors import SparkError
from spark_jax.prepare import records as make_records
from spark_jax.prepare.conversions import TokenConversion
from spark_jax.text.tokenizer import build_tokenizer

CASES = Path(__file__).parents[1] / "assets" / "cases"
DATA = TokenDataConfig(row_length=256, batch_rows=2)
LABELS = ("gender", "language", "pitch", "speed")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes", 512, 256)


@pytest.fixture
def conversion(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    return TokenConversion(str(tmp_path / "tokenizer"), None)


def read(path, tokenizer, **changes):
    config = dataclasses.replace(DATA, **changes)
    return token_sources.read_sequences(str(path), tokenizer, config, "train", True, 50.0, 32)


def good():
    lines = (CASES / "ok.jsonl").read_text().splitlines()
    return [json.loads(line) | {"split": "train"} for line in lines]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_text_that_is_null_is_counted(tokenizer):
    assert read(CASES / "ok.jsonl", tokenizer).dropped == {}
    with pytest.raises(SparkError, match=r"text_null.jsonl: utterance \S+: text is None, expected something to say"):
        read(CASES / "text_null.jsonl", tokenizer)
    assert read(CASES / "text_null.jsonl", tokenizer, on_error="skip").dropped == {"unusable": 1}


def test_a_record_of_31_global_ids_is_refused(tokenizer):
    with pytest.raises(SparkError, match="global_ids has 31 ids, expected 32, as the model"):
        read(CASES / "global_ids_31.jsonl", tokenizer)
    assert read(CASES / "global_ids_31.jsonl", tokenizer, on_error="skip").dropped == {"unusable": 1}


BAD = {
    "text empty": ({"text": ""}, "text is ''"),
    "text blank": ({"text": " \n"}, "text is"),
    "text a number": ({"text": 3}, "text is 3"),
    "text a list": ({"text": ["a"]}, "text is"),
    "33 global ids": ({"global_ids": [1] * 33}, "global_ids has 33 ids, expected 32"),
    "no global ids": ({"global_ids": []}, "global_ids has 0 ids, expected 32"),
    "global ids null": ({"global_ids": None}, "global_ids is None; expected a list of integers"),
    "global id too large": ({"global_ids": [1] * 31 + [256]}, r"global id 256 is out .* 255 \(global_ids\[31\]\)"),
    "global id negative": ({"global_ids": [-1] + [1] * 31}, "global id -1 is out of range, expected 0 to 255"),
    "global ids nested": ({"global_ids": [[1] * 32]}, r"global_ids\[0\] is "),
    "no semantic ids": ({"semantic_ids": []}, "semantic_ids is empty, expected at least one"),
    "semantic id too large": ({"semantic_ids": [5, 512]}, r"semantic id 512 is out .* 511 \(semantic_ids\[1\]\)"),
    "semantic id huge": ({"semantic_ids": [10**30]}, r"semantic_ids\[0\] is 1000"),
    "semantic ids of floats": ({"semantic_ids": [1.0, 2.0]}, r"semantic_ids\[0\] is 1.0; expected a list of integers"),
    "semantic ids of booleans": ({"semantic_ids": [1, True]}, r"semantic_ids\[1\] is True; expected"),
    "semantic ids of texts": ({"semantic_ids": ["1"]}, r"semantic_ids\[0\] is '1'; expected"),
    "semantic ids a text": ({"semantic_ids": "123"}, "semantic_ids is '123'; expected a list of integers"),
    "semantic ids ragged": ({"semantic_ids": [1, [2]]}, r"semantic_ids\[1\] is \[2\]; expected"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_the_grammar_never_makes_is_told_by_row_and_key(tokenizer, conversion, tmp_path, kind):
    changes, message = BAD[kind]
    lines = good()
    lines[3] |= changes
    path = write(tmp_path / "tokens.jsonl", lines)
    with pytest.raises(SparkError, match=f"tokens.jsonl: utterance {lines[3]['index']}: {message}") as told:
        read(path, tokenizer)
    assert "\n" not in str(told.value)
    assert read(path, tokenizer, on_error="skip").dropped == {"unusable": 1}
    with pytest.raises(SparkError, match=f"tokens.jsonl:4: utterance {lines[3]['index']}: {message}"):
        make_records.convert(conversion, path, tmp_path / "raise", 1)
    make_records.convert(conversion, path, tmp_path / "skip", 2, on_error="skip")
    sequences = read(tmp_path / "skip", tokenizer)
    assert sequences.dropped == {"unusable": 1} and len(sequences) == 2 * 7


@pytest.mark.parametrize("missing", [LABELS, LABELS[:1], LABELS[2:]])
def test_labels_are_needed_by_made_up_voices_alone(tokenizer, conversion, tmp_path, missing):
    lines = good()
    for line in lines[1:]:
        for name in missing:
            del line[name]
    path = write(tmp_path / "tokens.jsonl", lines)
    assert read(path, tokenizer, controllable_weight=0.0).dropped == {}
    reason = "unknown gender" if "gender" in missing else "no pitch"
    left_out = {f"controllable_tts: {reason}": 7}
    assert read(path, tokenizer).dropped == left_out
    make_records.convert(conversion, path, tmp_path / "records", 2)
    assert read(tmp_path / "records", tokenizer).dropped == left_out
    assert read(tmp_path / "records", tokenizer, controllable_weight=0.0).dropped == {}


def test_records_that_were_made_without_these_checks_are_refused_when_they_are_read(tmp_path):
    small = build_tokenizer("bytes", 16, 8)
    lines = record_files.utterances(20)  # four global ids each
    folder = record_files.write_tokens(tmp_path / "records", lines, small)
    read = lambda **changes: token_sources.read_sequences(  # noqa: E731
        str(folder), small, dataclasses.replace(DATA, **changes), "train", True, 50.0, 32
    )
    with pytest.raises(SparkError, match=r"array_record: record 0: global_ids has 4 ids, expected 32"):
        read()
    assert read(on_error="skip").dropped["unreadable"] > 0


def test_common_globals_are_taken_of_what_can_be_used(tokenizer, tmp_path):
    lines = good()
    lines[0]["global_ids"] = lines[0]["global_ids"][:31]
    path = write(tmp_path / "tokens.jsonl", lines)
    assert read(path, tokenizer, common_globals=True, on_error="skip").dropped in ({}, {"unusable": 1})
    with pytest.raises(SparkError, match="global_ids has 31 ids, expected 32"):
        assemble.most_typical_voice(path)


@pytest.fixture
def marked(tmp_path):
    """A byte order mark at the start and where two files were put together, blank lines, one Latin-1 byte at line 4."""
    lines = [json.dumps(line).encode() for line in good()]
    broken = lines[2].replace(b"children", b"caf\xe9")
    content = [
        b"\xef\xbb\xbf" + lines[0],
        b"",
        lines[1],
        broken,
        b" \t\r",
        *lines[3:7],
        b"\xef\xbb\xbf" + lines[7],
        b"",
    ]
    path = tmp_path / "tokens.jsonl"
    path.write_bytes(b"\n".join(content) + b"\n\n")
    return path


def test_marks_and_blank_lines_are_ignored_and_a_latin_1_byte_is_its_lines(marked, tokenizer, conversion, tmp_path):
    at = marked.read_bytes().splitlines()[3].index(0xE9)
    message = f"tokens.jsonl:4: not UTF-8 text .byte {at} is 0xe9."
    with pytest.raises(SparkError, match=message):
        read(marked, tokenizer)
    sequences = read(marked, tokenizer, on_error="skip")
    assert sequences.dropped == {"unreadable": 1} and len(sequences) == 2 * 7
    for shards in (1, 3, 7):  # the number is the file's, in whatever shard
        with pytest.raises(SparkError, match=message):
            make_records.convert(conversion, marked, tmp_path / f"raise{shards}", shards)
        make_records.convert(conversion, marked, tmp_path / f"skip{shards}", shards, on_error="skip")
        assert len(read(tmp_path / f"skip{shards}", tokenizer)) == 2 * 7


def test_a_file_of_utf_16_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"index": 1}\n', encoding="utf-16")
    with pytest.raises(SparkError, match="a.jsonl:1: not UTF-8 text .UTF-16."):
        manifest.read_jsonl(tmp_path / "a.jsonl", ["index"])


@pytest.mark.parametrize("line", [b'["index", "text"]', b'"index text"', b"null", b"true", b"[[" * 100_000, b"\x00"])
def test_lines_that_are_no_objects(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(b'{"index": 1, "text": ""}\n' + line + b"\n")
    with pytest.raises(SparkError, match="a.jsonl:2: not a JSON object") as told:
        manifest.read_jsonl(tmp_path / "a.jsonl", ["index", "text"])
    assert "\n" not in str(told.value) and len(str(told.value)) < 500
    dropped = DropCounter("skip")
    assert len(manifest.read_jsonl(tmp_path / "a.jsonl", ["index", "text"], dropped=dropped)) == 1
    assert dropped.counts == {"unreadable": 1}


@pytest.mark.parametrize("split", [None, 3, "", "../train", "a/b", ["train"]])
def test_a_split_that_is_no_name(conversion, tmp_path, split):
    lines = good()
    lines[1]["split"] = split
    path = write(tmp_path / "tokens.jsonl", lines)
    with pytest.raises(SparkError, match="tokens.jsonl:2: utterance .*: split is .* expected a name such as train"):
        make_records.convert(conversion, path, tmp_path / "out", 1)
    make_records.convert(conversion, path, tmp_path / "skip", 1, on_error="skip")
    assert {each.name[:5] for each in (tmp_path / "skip").iterdir()} == {"train"}


def test_the_command_tells_the_case(tmp_path, conversion, capsys):
    arguments = ("token-records", CASES / "global_ids_31.jsonl", tmp_path / "out", "--tokenizer", conversion.tokenizer)
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepare", *map(str, arguments), "--workers", "1", "--shards", "1"])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1 and "global_ids has 31 ids" in told


def test_ids_of_a_codec_and_of_a_record(tmp_path):
    sizes = CodeSizes(16, 8, None)
    check_ids({"global_ids": np.array([7], np.uint16), "semantic_ids": [15]}, sizes)
    with pytest.raises(SparkError, match="global id 8 is out of range"):
        check_ids({"global_ids": np.array([8], np.uint16), "semantic_ids": [15]}, sizes)
    with pytest.raises(SparkError, match="semantic_ids is of shape"):
        check_ids({"global_ids": [1], "semantic_ids": np.ones((1, 2))}, sizes)
