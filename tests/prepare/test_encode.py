import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import tiny_model

from spark_jax import config
from spark_jax.data import manifest
from spark_jax.errors import SparkError
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.model_directory import directory as model_directory

BATCH_FRAMES = 200  # the same in all tests: they share what is compiled
ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("encode_corpus", ROOT / "spark_jax" / "prepare" / "encode.py")
encode_corpus = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(encode_corpus)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for i, seconds in enumerate([0.7, 0.01, 1.0, 0.9, 2.0]):
        soundfile.write(folder / f"{i}.flac", tiny_model.speech(seconds, i), 16000)
        record = {"index": f"u{i}", "wav_path": f"{i}.flac", "duration": seconds, "text": f"Text {i}.", "split": "a"}
        lines.append(record)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def variables():
    return {name: part for name, part in tiny_model.variables().items() if name != "llm"}


def test_batches_give_the_tokens_of_single_utterances(corpus, variables, tmp_path):
    records = manifest.read_corpus(corpus, None)
    encode_corpus.encode_corpus(records, tmp_path / "tokens.jsonl", config.tiny(), variables, BATCH_FRAMES)
    lines = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == ["u0", "u2", "u3", "u4"]  # 10 ms make no token
    assert list(tmp_path.iterdir()) == [tmp_path / "tokens.jsonl"]
    tiny_model.write(tmp_path / "model", tmp_path / "tokenizer")
    tts = SparkTTS(model_directory.load(tmp_path / "model"))
    for line in lines:
        assert line["text"] == f"Text {line['index'][1]}." and "wav_path" not in line
        samples = manifest.read_audio(str(corpus / f"{line['index'][1]}.flac"), 16000)
        global_ids, semantic_ids = tts.encode(samples)
        np.testing.assert_array_equal(line["global_ids"], global_ids)
        np.testing.assert_array_equal(line["semantic_ids"], semantic_ids)


def test_a_killed_run_goes_on_where_it_stopped(corpus, variables, tmp_path, monkeypatch):
    """The text has a line separator, which JSON leaves as it is."""
    records = [record | {"text": "One\u2028two"} for record in manifest.read_corpus(corpus, None)]
    encode = functools.partial(encode_corpus.encode_corpus, records, batch_frames=BATCH_FRAMES)
    encode(tmp_path / "whole.jsonl", config.tiny(), variables)
    batches, counts = encode_corpus._encode, []

    def stops(*arguments):
        for i, record in enumerate(batches(*arguments)):
            if i == 2:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(encode_corpus, "_encode", stops)
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "tokens.jsonl", config.tiny(), variables)
    assert not (tmp_path / "tokens.jsonl").exists()
    with (tmp_path / "tokens.jsonl.partial").open("a") as file:
        file.write('{"index": "u')

    def counted(records, *arguments):
        counts.append(len(records))
        yield from batches(records, *arguments)

    monkeypatch.setattr(encode_corpus, "_encode", counted)
    encode(tmp_path / "tokens.jsonl", config.tiny(), variables)
    assert counts == [3]
    assert (tmp_path / "tokens.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_an_output_that_cannot_be_written(corpus, variables, tmp_path):
    (tmp_path / "file").write_text("")
    records = manifest.read_corpus(corpus, None)
    with pytest.raises(SparkError, match="cannot be written"):
        encode_corpus.encode_corpus(records, tmp_path / "file" / "tokens.jsonl", config.tiny(), variables)
