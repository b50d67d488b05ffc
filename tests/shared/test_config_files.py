"""Recipes by name and by path, from any folder; what a configuration names beside itself."""

import pytest
import yaml

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.shared.config_files import find_config, load_config, recipes, recipes_folder
from spark_jax.training.llm.config import LLMTrainingConfig


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("name", ["tiny_llm", "tiny_llm.yaml"])
def test_a_recipe_is_found_by_name_from_any_folder(name):
    assert find_config(name) == recipes_folder() / "tiny_llm.yaml"
    assert load_config(SparkConfig, load_config(LLMTrainingConfig, name).model).llm.hidden_size == 192


def test_all_recipes_have_a_name():
    assert {"llm_0_5b", "bicodec_16k", "tiny_llm", "tiny_en_model"} <= set(recipes())
    for name in recipes():
        model = yaml.safe_load(find_config(name).read_text()).get("model")
        assert model is None or model in recipes()


def test_a_path_with_and_without_its_suffix(elsewhere):
    (elsewhere / "run.yaml").write_text("accumulate: 3")
    for path in (elsewhere / "run.yaml", elsewhere / "run", "../run", "../run.yaml"):
        assert load_config(LLMTrainingConfig, path).accumulate == 3
    (elsewhere / "work" / "mine.yaml").write_text("accumulate: 4")
    assert load_config(LLMTrainingConfig, "mine").accumulate == 4


def test_a_file_of_that_name_comes_before_the_recipe(elsewhere):
    (elsewhere / "work" / "tiny_llm.yaml").write_text("accumulate: 7")
    assert load_config(LLMTrainingConfig, "tiny_llm.yaml").accumulate == 7
    assert load_config(LLMTrainingConfig, "./tiny_llm").accumulate == 7
    assert load_config(LLMTrainingConfig, "tiny_llm").accumulate == 2  # a bare name is a recipe's


@pytest.mark.parametrize("name", ["tiny_lm", "nowhere/tiny_llm.yaml", "tiny_llm.yml"])
def test_an_unknown_name_lists_what_there_is(name):
    with pytest.raises(SparkError) as caught:
        find_config(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: cannot be read (no such file); expected a YAML file or one of the recipes ")
    assert "llm_0_5b, " in message and "\n" not in message


def test_a_folder_is_no_configuration(elsewhere):
    with pytest.raises(SparkError, match="work: cannot be read .is a folder."):
        find_config(elsewhere / "work")


def test_a_model_beside_the_configuration_that_names_it(elsewhere):
    (elsewhere / "run.yaml").write_text("model: sizes.yaml")
    (elsewhere / "sizes.yaml").write_text("llm: {num_hidden_layers: 3}")
    config = load_config(LLMTrainingConfig, elsewhere / "run.yaml")
    assert load_config(SparkConfig, config.model).llm.num_hidden_layers == 3
    # The working directory's comes first, and an override is of the command line, not of the file.
    (elsewhere / "work" / "sizes.yaml").write_text("llm: {num_hidden_layers: 5}")
    assert load_config(LLMTrainingConfig, elsewhere / "run.yaml").model == "sizes.yaml"
    config = load_config(LLMTrainingConfig, elsewhere / "run.yaml", ["model=tiny_en_model"])
    assert load_config(SparkConfig, config.model).llm.num_hidden_layers == 6


def test_a_model_of_its_own_with_a_recipes_name(elsewhere):
    (elsewhere / "run.yaml").write_text("model: tiny_en_model")
    (elsewhere / "tiny_en_model.yaml").write_text("llm: {num_hidden_layers: 3}")
    config = load_config(LLMTrainingConfig, elsewhere / "run.yaml")
    assert load_config(SparkConfig, config.model).llm.num_hidden_layers == 3


def test_a_value_that_is_not_yaml():
    with pytest.raises(SparkError, match="--set accumulate=\\[: not YAML"):
        load_config(LLMTrainingConfig, None, ["accumulate=["])
