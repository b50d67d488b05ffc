"""Voice files of the speakers of a corpus."""

import json

import named_voices
import pytest

from spark_jax.config import SparkConfig
from spark_jax.model_directory.voice import Voice


def test_each_named_speaker_has_a_voice_and_the_source_the_default_one(tmp_path, capsys):
    rows = [("ada", 5), ("ada", 7), ("ada", 7), ("heart", 3), ("random-0123", 9), ("adam", 11)]
    lines = [
        {"index": str(i), "split": "train", "voice": voice, "global_ids": [code] * 32, "semantic_ids": [1]}
        for i, (voice, code) in enumerate(rows)
    ]
    (tmp_path / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "model.yaml").write_text("{}")
    named_voices.main(tmp_path / "tokens.jsonl", tmp_path / "voices", str(tmp_path / "model.yaml"))
    found = {path.stem: Voice.load(path, SparkConfig()) for path in (tmp_path / "voices").glob("*.json")}
    assert {name: set(voice.global_ids.tolist()) for name, voice in found.items()} == {
        "ada": {7},
        "adam": {11},
        "default": {3},
    }
    assert all(voice.transcript is None and not len(voice.semantic_ids) for voice in found.values())
    assert "ada: 3 utterances, whose global tokens agree with its own in 67%" in capsys.readouterr().out

    lines[0]["global_ids"] = [1] * 31
    (tmp_path / "tokens.jsonl").write_text(json.dumps(lines[0]))
    with pytest.raises(SystemExit, match="2"):
        named_voices.main(tmp_path / "tokens.jsonl", tmp_path / "voices", str(tmp_path / "model.yaml"))
    assert "global_ids has 31 ids, expected 32" in capsys.readouterr().err
