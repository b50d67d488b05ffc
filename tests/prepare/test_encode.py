import json

import jax
import numpy as np
import pytest
import soundfile
from helpers import tiny_model

from spark_jax.cli import main as cli
from spark_jax.data import manifest
from spark_jax.data.corpus_audio import read_audio
from spark_jax.errors import SparkError
from spark_jax.inference.codec import Codec
from spark_jax.model_directory import directory as model_directory
from spark_jax.prepare import encode


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
def codec(tiny_model_directory):
    """One for all tests: they share what is compiled."""
    model = model_directory.load(tiny_model_directory, parts=("bicodec", "wav2vec2"))
    return Codec(model.config, model.variables, batch_length=200)


@pytest.fixture(scope="module")
def whole(corpus, codec, tmp_path_factory):
    """The output of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("whole") / "tokens.jsonl"
    encode.encode_corpus(manifest.read_corpus(corpus, None), output, codec)
    assert list(output.parent.iterdir()) == [output]
    return output


@pytest.mark.extended
def test_batches_give_the_tokens_of_single_utterances(corpus, codec, whole):
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [line["index"] for line in lines] == ["u0", "u2", "u3", "u4"]  # 10 ms make no token
    for line in lines:
        assert line["text"] == f"Text {line['index'][1]}." and "wav_path" not in line
        samples = read_audio(str(corpus / f"{line['index'][1]}.flac"), 16000)
        [(global_ids, semantic_ids)] = codec.encode([samples])
        np.testing.assert_array_equal(line["global_ids"], global_ids)
        np.testing.assert_array_equal(line["semantic_ids"], semantic_ids)


@pytest.mark.extended
def test_a_killed_run_goes_on_where_it_stopped(corpus, codec, tmp_path, monkeypatch):
    """The text has a line separator, which JSON leaves as it is."""
    records = [record | {"text": "One\u2028two"} for record in manifest.read_corpus(corpus, None)]
    encode.encode_corpus(records, tmp_path / "whole.jsonl", codec)
    batches, counts = encode._encode, []

    def stops(*arguments):
        for i, record in enumerate(batches(*arguments)):
            if i == 2:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(encode, "_encode", stops)
    with pytest.raises(KeyboardInterrupt):
        encode.encode_corpus(records, tmp_path / "tokens.jsonl", codec)
    assert not (tmp_path / "tokens.jsonl").exists()
    with (tmp_path / "tokens.jsonl.partial").open("a") as file:
        file.write('{"index": "u')

    def counted(records, *arguments):
        counts.append(len(records))
        yield from batches(records, *arguments)

    monkeypatch.setattr(encode, "_encode", counted)
    encode.encode_corpus(records, tmp_path / "tokens.jsonl", codec)
    assert counts == [3]
    assert (tmp_path / "tokens.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_command_gives_on_all_devices_what_one_gives(corpus, whole, tiny_model_directory, tmp_path):
    """The codec comes from a folder that has nothing else, as a training's."""
    model = model_directory.load(tiny_model_directory, parts=["bicodec"])
    model_directory.write_parts(tmp_path / "run", model.config, model.variables)
    codec = encode.load_codec(tiny_model_directory, bicodec=tmp_path / "run")
    assert codec.mesh.shape["data"] == jax.local_device_count() == 8
    folders = (
        corpus,
        tmp_path / "new" / "tokens.jsonl",
        "--model",
        tiny_model_directory,
        "--bicodec",
        tmp_path / "run",
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepare", "encode", *map(str, folders)])
    assert not ended.value.code
    assert (tmp_path / "new" / "tokens.jsonl").read_bytes() == whole.read_bytes()


def test_an_output_that_cannot_be_written(corpus, codec, tmp_path):
    (tmp_path / "file").write_text("")
    records = manifest.read_corpus(corpus, None)
    with pytest.raises(SparkError, match="cannot be written"):
        encode.encode_corpus(records, tmp_path / "file" / "tokens.jsonl", codec)
