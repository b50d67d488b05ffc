import dataclasses
import json

import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax import config
from spark_jax.errors import SparkError
from spark_jax.model_directory.voice import Voice, check_ids, load_tokens, save_tokens

CONFIG = tiny()  # 32 global ids below 64, semantic ids below 64
GLOBAL = np.arange(32, dtype=np.int32)
SEMANTIC = np.array([0, 63, 7], np.int32)


@pytest.fixture
def voice_file(tmp_path):
    path = tmp_path / "voice.json"
    Voice(GLOBAL, SEMANTIC, "Où est-il ?").save(path, CONFIG.sample_rate)
    return path


def change(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def test_a_voice_survives_its_file(voice_file):
    voice = Voice.load(voice_file, CONFIG)
    np.testing.assert_array_equal(voice.global_ids, GLOBAL)
    np.testing.assert_array_equal(voice.semantic_ids, SEMANTIC)
    assert voice.transcript == "Où est-il ?"
    assert voice.global_ids.dtype == voice.semantic_ids.dtype == np.int32
    assert [path.name for path in voice_file.parent.iterdir()] == ["voice.json"]  # no temporary file stays


def test_a_voice_without_transcript_needs_no_speech(voice_file):
    Voice(GLOBAL, np.zeros(0, np.int32)).save(voice_file, CONFIG.sample_rate)
    voice = Voice.load(voice_file, CONFIG)
    np.testing.assert_array_equal(voice.global_ids, GLOBAL)
    assert voice.semantic_ids.shape == (0,) and voice.semantic_ids.dtype == np.int32 and voice.transcript is None
    change(voice_file, semantic_ids=SEMANTIC.tolist())  # as files were before
    np.testing.assert_array_equal(Voice.load(voice_file, CONFIG).semantic_ids, SEMANTIC)
    change(voice_file, semantic_ids=[64])
    with pytest.raises(SparkError, match=r"semantic_ids\[0\] is 64, expected 0 to 63"):
        Voice.load(voice_file, CONFIG)


def test_tokens_survive_their_file(tmp_path):
    save_tokens(tmp_path / "tokens.json", GLOBAL, SEMANTIC, 16000)
    assert json.loads((tmp_path / "tokens.json").read_text()) == {
        "global_ids": GLOBAL.tolist(),
        "semantic_ids": SEMANTIC.tolist(),
        "sample_rate": 16000,
    }
    global_ids, semantic_ids = load_tokens(tmp_path / "tokens.json", CONFIG)
    np.testing.assert_array_equal(global_ids, GLOBAL)
    np.testing.assert_array_equal(semantic_ids, SEMANTIC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, 'not a voice file: expected "format": "spark-jax-voice"'),
        ({"version": 2}, "version is 2, expected 1"),
        ({"transcript": 3}, "transcript is 3, expected text or null"),
        ({"transcript": " "}, "transcript is ' ', expected text or null"),
        ({"transcript": "\ud800b"}, "transcript is not Unicode text"),
        ({"transcript": "…"}, "transcript is '…', expected what the reference says"),
        ({"sample_rate": 24000}, "sample_rate is 24000, the model's is 16000"),
        ({"global_ids": [1, 2]}, "global_ids has 2 ids, expected 32"),
        ({"global_ids": [64] * 32}, r"global_ids\[0\] is 64, expected 0 to 63"),
        ({"semantic_ids": [1, -1]}, r"semantic_ids\[1\] is -1, expected 0 to 63"),
        ({"semantic_ids": [1, 2.5]}, "semantic_ids must be a flat list of integers"),
        ({"semantic_ids": [True, False]}, "semantic_ids must be a flat list of integers"),
        ({"semantic_ids": [[1], [2, 3]]}, "semantic_ids must be a flat list of integers"),
        ({"semantic_ids": [10**30]}, "semantic_ids must be a flat list of integers"),
        ({"semantic_ids": "12"}, "semantic_ids must be a flat list of integers"),
        ({"semantic_ids": []}, "semantic_ids is empty"),
        ({"pitch": 1}, "unknown key pitch"),
    ],
)
def test_a_fault_names_the_file_and_the_key(voice_file, changes, message):
    change(voice_file, **changes)
    with pytest.raises(SparkError, match=f"^{voice_file}: .*{message}"):
        Voice.load(voice_file, CONFIG)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"global_ids": [1]}', "key semantic_ids, sample_rate is missing"),
    ],
)
def test_what_is_no_token_file(tmp_path, content, message):
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    with pytest.raises(SparkError, match=f"^{path}: {message}"):
        load_tokens(path, CONFIG)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(SparkError, match="absent.json: cannot be read \\(No such file"):
        load_tokens(tmp_path / "absent.json", CONFIG)
    with pytest.raises(SparkError, match="cannot be read \\(Is a directory"):
        Voice.load(tmp_path, CONFIG)


def test_ids_are_checked_against_the_model():
    wider = dataclasses.replace(CONFIG, bicodec=config.BiCodecConfig())
    check_ids(GLOBAL, [8191], wider)
    with pytest.raises(SparkError, match=r"^semantic_ids\[0\] is 8191, expected 0 to 63"):
        check_ids(GLOBAL, [8191], CONFIG)
