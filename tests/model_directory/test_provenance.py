"""Where weights come from: hashes of sources, no path of the machine, the card, and `info`."""

import datetime
import hashlib
import json

import pytest

from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.provenance import Provenance, Source, model_card, read_provenance


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "Spark-TTS-0.5B"
    (folder / "LLM").mkdir(parents=True)
    (folder / "LLM" / "model.safetensors").write_bytes(b"weights")
    (folder / "config.yaml").write_bytes(b"sample_rate: 16000\n")
    return folder


def test_sources_are_named_and_hashed_without_the_path(source):
    files = [source / "LLM" / "model.safetensors", "config.yaml"]
    made = Source.of(source, files)
    assert made.name == "Spark-TTS-0.5B" and made.role == "model"
    assert made.files == {
        "LLM/model.safetensors": hashlib.sha256(b"weights").hexdigest(),
        "config.yaml": hashlib.sha256(b"sample_rate: 16000\n").hexdigest(),
    }
    assert Source.of(source, files, name="SparkAudio/Spark-TTS-0.5B").name == "SparkAudio/Spark-TTS-0.5B"
    with pytest.raises(SparkError, match="nowhere.bin: cannot be read"):
        Source.of(source, ["nowhere.bin"])
    for name in (str(source), "../elsewhere"):
        with pytest.raises(SparkError, match="is a path of one machine"):
            Source(name)
        with pytest.raises(SparkError, match="is a path of one machine"):
            Source("model", files={name: ""})


def test_round_trip_and_card(source, tmp_path):
    made = Provenance((Source.of(source, ["config.yaml"]), Source("my-lora", "lora")))
    made.write(tmp_path)
    assert read_provenance(tmp_path) == made
    assert made.versions.keys() == {"spark-jax", "jax", "flax", "orbax-checkpoint"} and all(made.versions.values())
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(made.date)
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=5)
    card = model_card(made, {"llm": (1234567, "bfloat16")})
    for fact in ("Spark-TTS-0.5B, my-lora", "| llm | 1,234,567 | bfloat16 |", "lora from my-lora", made.date):
        assert fact in card
    assert made.sources[0].files["config.yaml"] in card
    assert str(tmp_path) not in card + (tmp_path / "provenance.json").read_text()


@pytest.mark.parametrize("content", ["", "[]", '{"sources": "me"}', '{"sources": [], "surprise": 1}', "[" * 100_000])
def test_malformed_files(tmp_path, content):
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(SparkError, match=r"provenance\.json") as caught:
        read_provenance(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_directory_has_it(tiny_model_directory, tmp_path):
    """Without sources too, for what a training hands over; directories of before have none and load."""
    facts = model_directory.info(tiny_model_directory)
    assert facts.provenance == read_provenance(tiny_model_directory) and facts.provenance.sources == ()
    card = (tiny_model_directory / "MODEL_CARD.md").read_text()
    for part, size in facts.parts.items():
        assert f"| {part} | {size.parameters:,} | {size.dtype} |" in card
    assert read_provenance(tmp_path) is None
    assert json.loads((tiny_model_directory / "provenance.json").read_text())["sources"] == []
