"""Labels are what is heard; recordings of the package, some with a wrong gender."""

import json

import check_labels
import pytest
import typer
from typer.testing import CliRunner

from spark_jax.data import token_sources
from spark_jax.evaluation.recordings import BUNDLED
from spark_jax.inference.codec import EMBEDDED_VOICE, Codec

LABELS = {
    "awb-0": ("male", 130.0, 4.0),
    "awb-1": ("female", 130.0, 4.0),
    "held-f0-0": ("female", 180.0, 4.8),
    "held-f0-1": ("male", 180.0, 5.4),
}


def test_what_leaves_no_doubt_is_not_listened_to():
    of = lambda gender, pitch: check_labels.is_doubtful({"gender": gender, "pitch": pitch})  # noqa: E731
    assert of("male", 150.0) and of("female", 150.0)
    assert not (of("male", 90.0) or of("female", 250.0) or of("unknown", 150.0) or of(None, 150.0))


@pytest.mark.parametrize(
    ("gender", "male", "heard"),
    [("male", 0.8, True), ("male", 0.6, False), ("female", 0.4, False), ("female", 0.2, True), ("female", None, False)],
)
def test_a_gender_is_heard_with_some_certainty(gender, male, heard):
    assert check_labels.is_heard(gender, male) == heard


def test_a_voice_that_says_much_is_no_example_of_one_that_is_made_up():
    said = {"known": check_labels.MOST + 1, "made up": check_labels.MOST}
    records = [
        {"index": f"{voice}-{number}", "voice": voice, "gender": "female", "speed": 4.0, "language": "en"}
        for voice, count in said.items()
        for number in range(count)
    ]
    assert check_labels.take_known(records) == said["known"]
    assert {(record["voice"], record["gender"]) for record in records} == {("known", None), ("made up", "female")}


def test_labels_that_are_not_heard_go(tmp_path):
    pytest.importorskip("parselmouth")
    paths = {name: str(BUNDLED.parent / f"{name}.flac") for name in LABELS}
    ids = dict(zip(LABELS, Codec.load().encode_files(list(paths.values())), strict=True))
    lines = [
        {"index": name, "split": "train", "voice": name, "gender": gender, "pitch": pitch, "speed": speed}
        | {"language": "en", "text": "Something.", "wav_path": paths[name]}
        | {"global_ids": ids[name][0].tolist(), "semantic_ids": ids[name][1].tolist()}
        for name, (gender, pitch, speed) in LABELS.items()
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    app = typer.Typer()
    app.command()(check_labels.main)
    arguments = [str(tmp_path / "metadata.jsonl"), str(tmp_path / "out.jsonl"), "--corpus", str(tmp_path)]
    arguments += ["--codec", str(EMBEDDED_VOICE)]
    done = CliRunner().invoke(app, [*arguments, "--jobs", "1"])
    assert done.exit_code == 0 and "4 doubtful genders 1 female, 1 male are not heard" in done.output
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["gender"] for record in found] == ["male", None, "female", None]
    assert [record["speed"] for record in found] == [4.0, 4.0, None, None]
    faults = [token_sources.controllable_fault(record) for record in found]
    assert faults == ["", "unknown gender", "no speed", "unknown gender"]
    for record, line in zip(found, lines, strict=True):
        same = record["gender"] is None
        assert (record["pitch"] == line["pitch"]) == same
        assert record | {label: line[label] for label in ("gender", "speed", "pitch")} == line
    missing = CliRunner().invoke(app, [str(tmp_path / "none.jsonl"), *arguments[1:]])
    assert missing.exit_code == 2 and "none.jsonl" in missing.output
