"""Weight files in one piece and in shards."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from spark_jax.convert import weights
from spark_jax.errors import SparkError

TENSORS = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(("a", "b", "c"))}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def shards(tmp_path):
    """Two shards with an index."""
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    places |= {"c": "model-00002-of-00002.safetensors"}
    for file in set(places.values()):
        save_file({name: TENSORS[name] for name in places if places[name] == file}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": places}))
    return tmp_path


def test_the_preferred_file(shards):
    assert weights.find(shards) == shards / INDEX
    save_file(TENSORS, shards / "model.safetensors")
    assert weights.find(shards) == shards / "model.safetensors"
    with pytest.raises(SparkError, match="nowhere: no weights; expected model.safetensors, "):
        weights.find(shards / "nowhere")


def test_shards(shards):
    tensors = weights.read(shards / INDEX)
    assert tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        np.testing.assert_array_equal(tensors[name].read(), values)
    names = [INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [path.name for path in weights.files(shards / INDEX)] == names
    assert weights.files(shards / names[1]) == [shards / names[1]]


def test_shards_that_differ_from_the_index(shards):
    places = {"a": "model-00001-of-00002.safetensors", "d": "model-00002-of-00002.safetensors", "c": "gone.safetensors"}
    (shards / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(SparkError) as caught:
        weights.read(shards / INDEX)
    for part in (
        "gone.safetensors is missing",
        "model-00001-of-00002.safetensors holds b, which the index does not say",
        "model-00002-of-00002.safetensors lacks d",
        "model-00002-of-00002.safetensors holds c",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an index of shards"),
        ('{"weight_map": 1}', "not an index of shards"),
        ('{"weight_map": {"a": "../other.safetensors"}}', "'../other.safetensors' is no name of a weight file"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "is no name of a weight file"),
        ('{"weight_map": {"a": "model.index.json"}}', "is no name of a weight file"),
        ('{"weight_map": {"a": 1}}', "'1' is no name of a weight file"),
    ],
)
def test_malformed_indices(shards, text, message):
    (shards / INDEX).write_text(text)
    with pytest.raises(SparkError, match=message):
        weights.read(shards / INDEX)
