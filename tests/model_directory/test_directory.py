"""A model directory: round trip, storage types, and every fault as one line."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax import config as config_lib
from spark_jax.errors import ManyFaultsError, SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.shared.files import new_directory
from spark_jax.text.tokenizer import build_tokenizer

TINY = tiny()


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    abstract = model_directory.abstract_variables(TINY)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), abstract)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer("bytes", 64, 64).save(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory, variables, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    model_directory.save(folder, TINY, variables, tokenizer)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_round_trip(saved, variables, tokenizer):
    model = model_directory.load(saved)
    assert model.config == TINY
    assert jax.tree.structure(model.variables) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, model.variables, variables)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.variables))
    for path in tokenizer.iterdir():
        assert (model.tokenizer_directory / path.name).read_bytes() == path.read_bytes()
    assert model.voices == {} and model.default_voice is None


@pytest.mark.extended
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_storage_type_shortens_matrices_only(tmp_path, variables, tokenizer, dtype):
    (tmp_path / "voice.json").write_text("{}")
    (tmp_path / "card.md").write_text("# A card\n")
    model_directory.save(
        tmp_path / "model",
        TINY,
        variables,
        tokenizer,
        weight_dtype=dtype,
        voices={"default": tmp_path / "voice.json"},
        model_card=tmp_path / "card.md",
    )
    model = model_directory.load(tmp_path / "model")
    norm = model.variables["llm"]["params"]["norm"]["scale"]
    np.testing.assert_array_equal(norm, variables["llm"]["params"]["norm"]["scale"])
    codebook = variables["bicodec"]["params"]["quantizer"]["codebook"]
    np.testing.assert_array_equal(
        model.variables["bicodec"]["params"]["quantizer"]["codebook"], codebook.astype(dtype).astype(np.float32)
    )
    assert model.default_voice == model.voices["default"] == (tmp_path / "model" / "voices" / "default.json").absolute()
    assert (tmp_path / "model" / "MODEL_CARD.md").read_text() == "# A card\n"
    info = model_directory.info(tmp_path / "model")
    assert {part.dtype for part in info.parts.values()} == {np.dtype(dtype).name}
    assert info.voices == ["default"]


def test_info(saved, variables):
    info = model_directory.info(saved)
    for part, size in info.parts.items():
        assert size.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables[part]))
        assert size.bytes == 4 * size.parameters
    assert info.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert (info.vocabulary, info.semantic_codes, info.global_codes, info.global_tokens) == (2048, 64, 64, 32)
    assert (info.token_rate, info.sample_rate) == (50.0, 16_000)
    assert info.bytes > sum(part.bytes for part in info.parts.values())


def test_all_differences_come_together(tmp_path, variables, tokenizer, monkeypatch):
    """A directory whose tensors are not its configuration's: listed at once, none read."""
    wide = config_lib.from_mapping(
        config_lib.SparkConfig,
        config_lib.to_mapping(TINY) | {"llm": config_lib.to_mapping(TINY)["llm"] | {"intermediate_size": 50}},
        "test",
    )
    codec = variables["bicodec"]
    params = {name: tree for name, tree in codec["params"].items() if name != "postnet"} | {
        "surprise": np.zeros((2, 3), np.float32)
    }
    faulty = variables | {"bicodec": codec | {"params": params}}
    with pytest.raises(ManyFaultsError, match="tensors do not fit") as caught:
        model_directory.save(tmp_path / "refused", TINY, faulty, tokenizer)
    assert any("extra bicodec/params/surprise" in fault for fault in caught.value.faults)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(model_directory, "check_fit", lambda *_: None)
    model_directory.save(tmp_path / "model", wide, faulty, tokenizer)
    monkeypatch.undo()
    with pytest.raises(ManyFaultsError) as caught:
        model_directory.load(tmp_path / "model")
    faults = "; ".join(caught.value.faults)
    for part in (
        "missing bicodec/params/postnet/linear_in/kernel [24, 12]",
        "extra bicodec/params/surprise [2, 3]",
        "misshapen llm/params/layers/mlp/up/kernel [2, 32, 48], expected [2, 32, 50]",
    ):
        assert part in faults
    assert "\n" not in str(caught.value)


def test_truncated_and_missing_parameter_files_are_named(copy):
    data = max((copy / "params" / "llm").rglob("*"), key=lambda path: path.stat().st_size)
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    gone = copy / "params" / "bicodec" / "state" / "manifest.ocdbt"
    gone.unlink()
    with pytest.raises(SparkError) as caught:
        model_directory.load(copy)
    message = str(caught.value)
    assert f"{data} has {len(content) - 1} bytes, expected {len(content)}" in message
    assert f"{gone} is missing" in message and "\n" not in message
    (copy / "manifest.json").unlink()
    with pytest.raises(SparkError, match=r"manifest\.json: cannot be read"):
        model_directory.info(copy)


def test_a_damaged_file_of_the_right_size(copy):
    manifest = copy / "params" / "llm" / "state" / "_METADATA"
    manifest.write_bytes(b"\0" * manifest.stat().st_size)
    with pytest.raises(SparkError, match=r"params/llm: cannot be read, its metadata is damaged") as caught:
        model_directory.load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: cannot be read"),
        ("{", "config.json: not valid JSON"),
        ("[]", "format_version is None, expected 1"),
        ({"format_version": 2}, "format_version is 2, expected 1"),
        ({"surprise": 1}, "surprise"),
        ({"sample_rate": "fast"}, "sample_rate"),
    ],
)
def test_broken_configurations(copy, content, message):
    path = copy / "config.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(SparkError) as caught:
        model_directory.load(copy)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_that_do_not_fit_together(copy):
    path = copy / "config.json"
    content = json.loads(path.read_text())
    content["bicodec"]["speaker_encoder"]["out_dim"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(SparkError, match="bicodec: the sizes do not fit together"):
        model_directory.load(copy)


def test_missing_tokenizer(copy):
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(SparkError, match="tokenizer: no such directory"):
        model_directory.load(copy)


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, variables, tokenizer):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for taken in ("file", "full", "file/below"):
        with pytest.raises(SparkError):
            model_directory.save(tmp_path / taken, TINY, variables, tokenizer)

    def fail():
        with new_directory(tmp_path / "new") as folder:
            (folder / "half").touch()
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine"]
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty") as folder:
        (folder / "whole").touch()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["whole"]


def test_no_path_of_the_machine_is_written(saved):
    folder = str(saved.parent).encode()
    assert [path for path in saved.rglob("*") if path.is_file() and folder in path.read_bytes()] == []
