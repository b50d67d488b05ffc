import numpy as np
import pytest

from spark_jax.errors import SparkError
from spark_jax.evaluation.cases import Speech
from spark_jax.evaluation.run_folder import RunFolder


class Counts:
    name, version = "counts", "1"

    def judge(self, utterance):
        return {"samples": len(utterance.samples)}


def test_what_was_done_is_found_again(tmp_path):
    run = RunFolder(tmp_path / "run", {"seed": 0})
    wave = (0.25 * np.sin(np.arange(8000) / 9)).astype(np.float32)
    run.keep_speech("a", wave, 24_000, Speech(1 / 3, checks=("loop",)))
    run.keep_speech("b", np.zeros(0, np.float32), 16_000, Speech(0.0, error="no room"))
    run.keep_found("a", Counts(), {"samples": 5333, "heard": "größer"})
    run.keep_time(how="batch", audio_seconds=1.0)
    again = RunFolder(tmp_path / "run", {"seed": 0})
    assert again.spoken == {"a": Speech(1 / 3, checks=("loop",)), "b": Speech(0.0, error="no room")}
    assert again.spoken["a"].failed and again.spoken["b"].failed and not Speech(1.0).failed
    assert again.found("a", Counts()) == {"samples": 5333, "heard": "größer"} and again.found("b", Counts()) is None
    assert len(again.samples("a")) == pytest.approx(16000 / 3, abs=1)
    assert again.times() == [{"how": "batch", "audio_seconds": 1.0}]


def test_another_version_of_a_judge_hears_again(tmp_path):
    run = RunFolder(tmp_path, {})
    run.keep_found("a", Counts(), {"samples": 1})
    newer = Counts()
    newer.version = "2"
    assert run.found("a", newer) is None


def test_a_torn_line_is_that_of_a_kill(tmp_path):
    run = RunFolder(tmp_path, {})
    for key in "ab":
        run.keep_speech(key, np.zeros(0, np.float32), 16_000, Speech(1.0))
    path = tmp_path / "spoken.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = RunFolder(tmp_path, {})
    assert list(again.spoken) == ["a"]
    again.keep_speech("b", np.zeros(0, np.float32), 16_000, Speech(2.0))
    assert list(RunFolder(tmp_path, {}).spoken) == ["a", "b"]


def test_another_evaluation_is_not_continued(tmp_path):
    RunFolder(tmp_path, {"seed": 0, "count": 20})
    with pytest.raises(SparkError, match="holds an evaluation with count 20, asked for is 30; expected the same"):
        RunFolder(tmp_path, {"seed": 0, "count": 30})
    (tmp_path / "settings.json").unlink()
    (tmp_path / "spoken.jsonl").touch()
    with pytest.raises(SparkError, match=r"has no settings.json"):
        RunFolder(tmp_path, {})
    (tmp_path / "file").touch()
    with pytest.raises(SparkError, match="cannot be written"):
        RunFolder(tmp_path / "file", {})
