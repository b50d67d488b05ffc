from pathlib import Path

import pytest

from spark_jax.config import SparkConfig
from spark_jax.data.config import SourceConfig
from spark_jax.errors import SparkError
from spark_jax.training.config import CTCTrainingConfig, LLMTrainingConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("cls", "name"),
    [(CTCTrainingConfig, "tiny_wav2vec2"), (LLMTrainingConfig, "tiny_llm"), (LLMTrainingConfig, "llm_0_5b")],
)
def test_the_configurations_of_the_repository(cls, name):
    config = load_config(cls, CONFIGS / f"{name}.yaml")
    assert config != cls()


def test_a_section_keeps_the_other_defaults_of_the_run(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optimizer: {learning_rate: 2e-3}\n")
    config = load_config(LLMTrainingConfig, path, ["loop.steps=7", "optimizer.betas=[0.5, 0.6]"])
    default = LLMTrainingConfig().optimizer
    assert config.optimizer.learning_rate == 2e-3 and config.optimizer.schedule == default.schedule
    assert config.optimizer.betas == (0.5, 0.6) and config.loop.steps == 7


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("loop: {stepz: 3}", [], "run.yaml.*stepz"),
        ("loop: {steps: many}", [], "run.yaml.*steps"),
        ("- a list", [], "run.yaml.*expected a mapping"),
        ("a: [", [], "run.yaml: not YAML"),
        ("", ["loop.stepz=3"], "loop.stepz=3.*stepz"),
        ("", ["loop.steps"], "expected key=value"),
        ("loop: {steps: 3}", ["loop.steps.more=1"], "steps is not a mapping"),
    ],
)
def test_mistakes_are_named(tmp_path, text, overrides, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SparkError, match=message) as caught:
        load_config(LLMTrainingConfig, path, overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(SparkError, match="nowhere.yaml: cannot be read"):
        load_config(LLMTrainingConfig, "nowhere.yaml")


def test_the_size_of_heads_follows_the_file(tmp_path):
    """The defaults' own head size must not come along where a file names other sizes of the decoder."""
    path = tmp_path / "model.yaml"
    path.write_text("llm: {hidden_size: 192, num_attention_heads: 4}")
    assert load_config(SparkConfig, path).llm.head_dim == 48
    path.write_text("llm: {hidden_size: 192, num_attention_heads: 4, head_dim: 64}")
    assert load_config(SparkConfig, path).llm.head_dim == 64


def test_sources_are_a_path_or_a_list_with_weights():
    assert load_config(LLMTrainingConfig, None, ["tokens=a.jsonl"]).tokens == "a.jsonl"
    mixture = load_config(LLMTrainingConfig, None, ["tokens=[{path: a, weight: 2}, {path: b}]"]).tokens
    assert mixture == (SourceConfig("a", 2.0), SourceConfig("b"))
    for value in ("3", "[3]", "[{pat: a}]", "[{path: a, weight: x}]"):
        with pytest.raises(SparkError, match="tokens"):
            load_config(LLMTrainingConfig, None, [f"tokens={value}"])
    with pytest.raises(SparkError, match="on_error"):
        load_config(LLMTrainingConfig, None, ["data.on_error=ignore"])
