"""A run's folder is a model directory: its sizes, its parts, its best ones; and a folder of before becomes one."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers import tiny_model
from helpers.tiny_config import tiny

from spark_jax.config import Wav2Vec2Config, to_mapping
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.training.config import LoopConfig
from spark_jax.training.ctc.run import extractor_params
from spark_jax.training.run import Run


@pytest.fixture(scope="module")
def variables():
    return tiny_model.variables()


@pytest.fixture
def open_run(toy, tmp_path):
    """A run in `tmp_path`, of a model with the given sizes."""

    def open_run(system=tiny(), steps=2):  # noqa: B008
        made = toy(tmp_path, steps)
        return Run(tmp_path, made.program(), system, LoopConfig(steps=steps))

    return open_run


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_parts_come_with_their_sizes_and_the_best_are_a_model_directory_too(open_run, tmp_path, variables):
    run = open_run()
    assert model_directory.read_config(tmp_path) and not model_directory.stored_parts(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "ranks").write_text("a")
    (tmp_path / "training.json").write_text("{}")
    run.write_parts({"llm": variables["llm"]})
    run.keep_best()
    later = jax.tree.map(lambda leaf: leaf + 1, variables["llm"])
    run.write_parts({"llm": later})
    run.close()
    same(model_directory.read_part(tmp_path, "llm"), later)
    best = tmp_path / "best"
    same(model_directory.read_part(best, "llm"), variables["llm"])
    assert model_directory.read_config(best).llm == model_directory.read_config(tmp_path).llm == tiny().llm
    assert model_directory.stored_parts(tmp_path) == model_directory.stored_parts(best) == ["llm"]
    names = ["config.json", "params", "tokenizer", "training.json"]
    assert sorted(path.name for path in best.iterdir()) == names
    assert (best / "tokenizer" / "ranks").read_text() == "a"


def test_a_run_of_before_is_a_model_directory_from_its_next_evaluation_on(toy, open_run, tmp_path, variables):
    """Until then it stays what it is: whoever reads the folder finds its parts."""
    toy(tmp_path, 2).run()
    (tmp_path / "config.json").write_text(json.dumps({"model": None, "loop": {"steps": 2}}))
    (tmp_path / "model.yaml").write_text(json.dumps(to_mapping(tiny())))
    model_directory.write_parts(tmp_path / "made", tiny(), {"llm": variables["llm"]})
    (tmp_path / "made" / "params" / "llm").rename(tmp_path / "llm")
    run = open_run(steps=4)
    assert not run.is_new
    assert model_directory.read_config(tmp_path) == tiny() and (tmp_path / "model.yaml").exists()
    same(model_directory.read_part(tmp_path, "llm"), variables["llm"])
    later = jax.tree.map(lambda leaf: leaf + 1, variables["llm"])
    run.write_parts({"llm": later})
    run.close()
    assert not (tmp_path / "model.yaml").exists()
    assert model_directory.read_config(tmp_path).llm == tiny().llm
    same(model_directory.read_part(tmp_path, "llm"), later)


def test_a_finished_model_directory_is_no_folder_for_a_run(toy, open_run, tiny_model_directory, tmp_path):
    (tmp_path / "manifest.json").write_bytes((tiny_model_directory / "manifest.json").read_bytes())
    with pytest.raises(SparkError, match="a finished model directory"):
        open_run()


def test_the_extractor_is_the_recognizer_up_to_its_last_tap():
    layers = {"attention": np.arange(12.0).reshape(3, 4)}
    params = {"wav2vec2": {"layers": layers, "norm": np.ones(2)}, "head": np.ones(3)}
    config = dataclasses.replace(Wav2Vec2Config(), feature_layers=(1, 2))
    found = extractor_params(params, config)
    assert found.keys() == {"layers", "norm"}
    np.testing.assert_array_equal(found["layers"]["attention"], layers["attention"][:2])
