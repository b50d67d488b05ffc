"""Copies of utterances at other paces: their tokens, labels and times fit each other."""

import json

import corpus_measures
import numpy as np
import pytest
import typer
import vary_pace
from typer.testing import CliRunner

from spark_jax.data import token_sources


def record(index, tokens, speed, **changed):
    """A record whose own pace is `speed`; the label of it is gone, as that of a speed between two levels."""
    times = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9]
    common = {"split": "train", "text": "Hi, you.", "gender": "male", "language": "en", "pitch": 110.0}
    common |= {"phonemes": "hˈ ju", "phoneme_bounds": times, "global_ids": [1, 2], "wav_path": "a.flac"}
    spoken = {"syllable_num": 9, "speech_duration": 9 / speed}
    return common | {"index": index, "semantic_ids": list(range(tokens)), "speed": None} | spoken | changed


@pytest.mark.parametrize(("factor", "expected"), [(2.0, [0, 0, 1, 1, 2, 2, 3, 3]), (1.0, [0, 1, 2, 3]), (0.5, [1, 3])])
def test_tokens_are_repeated_or_left_out_evenly(factor, expected):
    np.testing.assert_array_equal(vary_pace.stretched(np.arange(4), factor), expected)


@pytest.mark.parametrize("factor", np.linspace(0.5, 2.0, 16))
def test_order_and_ends_stay(factor):
    found = vary_pace.stretched(np.arange(50), factor)
    assert len(found) == round(50 * factor) and np.all(np.diff(found) >= 0) and found[0] <= 1 and found[-1] >= 48


def test_labels_follow_the_tokens():
    records = [record(str(number), 60, 4.5) for number in range(300)]
    copies = vary_pace.paced(records)
    factors = np.array([len(copy["semantic_ids"]) / 60 for copy in copies])
    assert 0.61 < factors.min() < 0.65 and 1.8 < factors.max() <= 2.1 + 0.01
    for copy, factor in zip(copies, factors, strict=True):
        assert copy["speed"] == pytest.approx(4.5 / factor, abs=1e-3) and copy["pitch"] == 110.0
        np.testing.assert_allclose(copy["phoneme_bounds"], np.array(records[0]["phoneme_bounds"]) * factor, atol=1e-4)
        assert "wav_path" not in copy
        assert token_sources.controllable_fault(copy) == token_sources.utterance_fault(copy) == ""
    speeds = np.array([copy["speed"] for copy in copies])
    assert np.histogram(speeds, [2.2, 3.3, 4.72, 5.464, 7.0])[0].min() > 20  # of 300: of each level some
    assert not any(corpus_measures.is_between_levels(each, "en") for each in speeds)
    assert len({copy["index"] for copy in copies} | {each["index"] for each in records}) == 600


def test_none_becomes_longer_than_it_may():
    (copy,) = vary_pace.paced([record("long", 290, 6.5)], seed=3)
    assert len(copy["semantic_ids"]) <= 300


def test_command(tmp_path):
    app = typer.Typer()
    app.command()(vary_pace.main)
    (tmp_path / "tokens.jsonl").write_text(json.dumps(record("a", 50, 4.0)) + "\n")
    done = CliRunner().invoke(app, [str(tmp_path / "tokens.jsonl"), str(tmp_path / "paced.jsonl")])
    assert done.exit_code == 0 and "1 utterances" in done.output
    assert json.loads((tmp_path / "paced.jsonl").read_text())["index"] == "a-paced"
    missing = CliRunner().invoke(app, [str(tmp_path / "none.jsonl"), str(tmp_path / "paced.jsonl")])
    assert missing.exit_code == 2 and "none.jsonl" in missing.output
