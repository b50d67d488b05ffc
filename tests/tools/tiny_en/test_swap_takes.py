"""Semantic tokens of another take of a sentence, at the times of one's own phonemes."""

import json

import numpy as np
import pytest
import swap_takes
import typer
from typer.testing import CliRunner


def record(index, bounds, ids, **changed):
    common = {"split": "train", "engine": "heart", "text": "Good morning.", "phoneme_bounds": bounds}
    return common | {"index": index, "semantic_ids": ids} | changed


def test_tokens_follow_the_phonemes():
    """A phoneme of two tokens becomes one of four, one of four stays; silence before and after is stretched, too."""
    theirs, ours = np.array([0.02, 0.06, 0.14]), np.array([0.04, 0.12, 0.20])
    ids = np.array([0, 1, 1, 2, 3, 4, 5, 9])
    found = swap_takes.warp(ids, theirs, ours, 12)
    np.testing.assert_array_equal(found, [0, 0, 1, 1, 1, 1, 2, 3, 4, 5, 9, 9])
    np.testing.assert_array_equal(swap_takes.warp(ids, theirs, theirs, 8), ids)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_there_are_as_many_as_are_asked_for(count):
    found = swap_takes.warp(np.arange(5), np.array([0.03, 0.09]), np.array([0.01, 0.02]), count)
    assert found.shape == (count,) and np.all(np.diff(found) >= 0)


def test_only_takes_of_one_source_are_swapped():
    records = [
        record("a", [0.0, 0.04], [1, 2]),
        record("b", [0.0, 0.08], [3, 3, 4, 4]),
        record("other engine", [0.0, 0.04], [5, 6], engine="slt"),
        record("other text", [0.0, 0.04], [7, 8], text="Good evening."),
        record("validation", [0.0, 0.04], [9, 9], split="validation"),
    ]
    found, made = swap_takes.swapped(records, 1.0)
    assert made == 2 and [each["index"] for each in found] == [each["index"] for each in records]
    assert [each["semantic_ids"] for each in found] == [[3, 4], [1, 1, 2, 2], [5, 6], [7, 8], [9, 9]]
    assert records[0]["semantic_ids"] == [1, 2]
    assert swap_takes.swapped(records, 0.0) == (records, 0)


def test_command(tmp_path):
    app = typer.Typer()
    app.command()(swap_takes.main)
    records = [record("a", [0.0, 0.04], [1, 2]), record("b", [0.0, 0.08], [3, 3, 4, 4])]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    done = CliRunner().invoke(app, [str(tmp_path / "ids.jsonl"), str(tmp_path / "out.jsonl"), "--share", "1"])
    assert done.exit_code == 0 and "2 with the tokens of another take" in done.output
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["semantic_ids"] for line in lines] == [[3, 4], [1, 1, 2, 2]]
    missing = CliRunner().invoke(app, [str(tmp_path / "none.jsonl"), str(tmp_path / "out.jsonl")])
    assert missing.exit_code == 2 and "none.jsonl" in missing.output
