import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import pytest

from spark_jax.config import SparkConfig
from spark_jax.convert.configuration import read_llm_config
from spark_jax.data.config import SourceConfig
from spark_jax.errors import SparkError
from spark_jax.shared.config_files import load_config
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.program import codec_program
from spark_jax.training.config import MeshConfig
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.llm.program import llm_program

CONFIGS = Path(__file__).parents[2] / "configs"


TRAININGS = {"ctc": CTCTrainingConfig, "codec": BiCodecTrainingConfig, "llm": LLMTrainingConfig}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_of_the_repository(path):
    """Each loads as what its header says it is for: the command of a training, or the sizes of a model."""
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    command = re.search(rf"spark-jax train (\w+) {path.stem} -o", header)
    cls = TRAININGS[command[1]] if command else SparkConfig
    config = load_config(cls, path)
    assert config != cls()
    if command:
        load_config(SparkConfig, config.model)
    else:
        assert "spark_jax.config.SparkConfig" in header


def test_the_commands_for_gpus_have_the_recipes_batch():
    path = CONFIGS / "llm_0_5b.yaml"
    text = path.read_text().replace("\\\n#", "")
    commands = re.findall(r"^#   spark-jax (train llm .* --set mesh.*)$", text, re.MULTILINE)
    assert len(commands) == 2
    recipe, system = load_config(LLMTrainingConfig, path), SparkConfig()
    for command, devices in zip(commands, (1, 8), strict=True):
        config = load_config(LLMTrainingConfig, path, re.findall(r"--set (\S+)", command))
        assert llm_program(config, system, jax.devices()[:devices]).mesh.size == devices
        assert config.accumulate * config.data.batch_rows == recipe.accumulate * recipe.data.batch_rows == 512


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "meshes"),
    [
        ("llm_0_5b", [(1, 8, 1), (2, 2, 2)]),
        ("llm_qwen3_0_6b", [(1, 4, 2), (1, 1, 8)]),
        ("bicodec_16k", [(2, 4, 1), (1, 2, 4)]),
    ],
)
def test_meshes_divide_the_recipes(name, meshes):
    """Every axis of the real sizes; `abstract_state` raises where one is not divided."""
    cls, program = (LLMTrainingConfig, llm_program) if "llm" in name else (BiCodecTrainingConfig, codec_program)
    config = load_config(cls, CONFIGS / f"{name}.yaml")
    system = load_config(SparkConfig, config.model)
    for data, fsdp, tensor in meshes:
        mesh = MeshConfig(data, fsdp, tensor)
        state = program(dataclasses.replace(config, mesh=mesh), system).abstract_state()
        leaves = jax.tree.leaves((state.params, state.opt_state))
        whole, shard = (
            sum(math.prod(shape(leaf)) for leaf in leaves)
            for shape in (lambda leaf: leaf.shape, lambda leaf: leaf.sharding.shard_shape(leaf.shape))
        )
        # The codec's convolutions are divided over tensor alone; 57 % of its state is others.
        over_tensor_alone = 0.0 if "llm" in name else 0.43
        assert shard < 1.03 * whole * (over_tensor_alone + (1 - over_tensor_alone) / fsdp) / tensor


def test_sizes_of_qwen3(tmp_path):
    """Those of Qwen3-0.6B-Base's published config.json, but for the vocabulary."""
    published = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 32768,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
        "use_sliding_window": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    ours = load_config(SparkConfig, CONFIGS / "qwen3_0_6b_model.yaml").llm
    assert ours == dataclasses.replace(read_llm_config(tmp_path / "config.json"), vocab_size=166_000)


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
