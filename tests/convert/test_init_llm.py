"""A base Qwen becomes the start of a pretraining, which runs and is exported again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import official_layout
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken

from spark_jax.config import Qwen2Config
from spark_jax.convert import configuration
from spark_jax.convert.engine import source_shapes
from spark_jax.convert.export import export
from spark_jax.convert.init_llm import init_llm
from spark_jax.convert.tables import qwen2
from spark_jax.data.config import TokenDataConfig
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory import manifest
from spark_jax.model_directory.parameters import abstract_part
from spark_jax.performance import hardware
from spark_jax.performance.flops import llm_step_flops
from spark_jax.text import tokenizer as tokenizer_lib
from spark_jax.text.tokenizer import SparkTokenizer, spark_tokens
from spark_jax.training.config import LoopConfig, MeshConfig
from spark_jax.training.llm import run as llm_run
from spark_jax.training.llm.config import LLMTrainingConfig

CODES = (64, 16)  # semantic, global
ROWS = 2048
CONFIG = Qwen2Config(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=24,
    max_position_embeddings=512,
)
KNOWN = 259  # 256 bytes, 3 special tokens


def write_base(folder: Path, config: Qwen2Config = CONFIG) -> Path:
    """A Qwen of random weights with correlated embeddings and a tokenizer without Spark tokens."""
    folder.mkdir()
    configuration.write_llm_config(folder, config, "float32", end=258, padding=256)
    shapes = source_shapes(qwen2.rules(config), abstract_part("llm", config))
    tensors = {name: official_layout.random_values(name, shape) for name, shape in shapes.items()}
    mixing = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    for name in (qwen2.EMBEDDING, qwen2.HEAD):
        if name in tensors:
            tensors[name] = tensors[name] @ mixing + 2 * mixing[0]
            tensors[name][KNOWN:] = 1e3  # reserve rows, never trained
    save_file(tensors, folder / "model.safetensors")
    base = tokenizer_lib._text_tokenizer("bytes")
    base.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "qwen")


@pytest.fixture(scope="module")
def start(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "start"
    made = init_llm(base, folder, ROWS, 3, *CODES)
    assert made.base_tokens == KNOWN and made.tokens == KNOWN + len(spark_tokens(*CODES))
    assert made.config == dataclasses.replace(CONFIG, vocab_size=ROWS)
    return folder


def read(folder: Path, config: Qwen2Config):
    return model_directory.read_part(folder, "llm", abstract_part("llm", config))["params"]


def test_tokens_come_in_the_release_s_order(base, start):
    tokenizer = SparkTokenizer.load(start / "tokenizer")
    assert [tokenizer.id(token) for token in spark_tokens(*CODES)] == list(range(KNOWN, tokenizer.vocab_size))
    assert tokenizer.encode("Ä<|task_tts|>") == [*"Ä".encode(), tokenizer.id("<|task_tts|>")]


def test_old_rows_stay_and_new_ones_have_the_old_ones_statistics(base, start):
    config = dataclasses.replace(CONFIG, vocab_size=ROWS)
    params = read(start, config)
    source = load_file(base / "model.safetensors")
    old, rows = source[qwen2.EMBEDDING][:KNOWN], np.asarray(params["embed"]["embedding"])
    np.testing.assert_array_equal(rows[:KNOWN], old)
    new = rows[KNOWN:]
    deviation = old.std(axis=0)
    assert np.abs((new.mean(axis=0) - old.mean(axis=0)) / deviation).max() < 4 / np.sqrt(len(new))
    correlations = [np.corrcoef(part.T) for part in (new, old)]
    assert np.abs(correlations[0] - correlations[1]).max() < 0.15  # of up to 0.9 between dimensions
    assert np.abs(correlations[1] - np.eye(16)).max() > 0.5
    assert np.abs(new.std(axis=0) / deviation - 1).max() < 0.1
    up = np.asarray(params["layers"]["mlp"]["up"]["kernel"])
    np.testing.assert_array_equal(up[1], source["model.layers.1.mlp.up_proj.weight"].T)


def test_the_start_is_a_model_directory_of_one_part(start):
    assert model_directory.info(start).parts.keys() == {"llm"}
    assert model_directory.read_config(start).llm == dataclasses.replace(CONFIG, vocab_size=ROWS)
    content = json.loads((start / "config.json").read_text())
    assert "llm" in content and content.keys() & {"bicodec", "wav2vec2"} == set()
    assert manifest.check(start) > 5
    [source] = model_directory.info(start).provenance.sources
    assert (source.name, source.role, list(source.files)) == ("qwen", "llm", ["model.safetensors"])
    loaded = model_directory.load(start, parts=("llm",))
    assert SparkTokenizer.load(loaded.tokenizer_directory).vocab_size == KNOWN + len(spark_tokens(*CODES))


def test_the_seed_decides(base, start, tmp_path):
    for seed in (3, 4):
        init_llm(base, tmp_path / str(seed), ROWS, seed, *CODES)
    config = dataclasses.replace(CONFIG, vocab_size=ROWS)
    first, same, other = (
        np.asarray(read(folder, config)["embed"]["embedding"]) for folder in (start, tmp_path / "3", tmp_path / "4")
    )
    np.testing.assert_array_equal(first, same)
    assert (first[:KNOWN] == other[:KNOWN]).all() and (first[KNOWN:] != other[KNOWN:]).all()


def test_an_untied_head_grows_too(tmp_path):
    untied = dataclasses.replace(CONFIG, tie_word_embeddings=False, head_dim=8, attention_bias=False, qk_norm=True)
    made = init_llm(write_base(tmp_path / "qwen3", untied), tmp_path / "start", ROWS, 0, *CODES)
    params = read(tmp_path / "start", made.config)
    head, embedding = np.asarray(params["head"]).T, np.asarray(params["embed"]["embedding"])
    np.testing.assert_array_equal(head[:KNOWN], load_file(tmp_path / "qwen3/model.safetensors")[qwen2.HEAD][:KNOWN])
    assert np.isfinite(head).all() and np.abs(head).max() < 1e2
    assert (head[KNOWN:] != embedding[KNOWN:]).all()


@pytest.mark.extended
def test_training_begins_there_and_its_output_is_exported(start, tmp_path, monkeypatch):
    """The training with the three settings of configs/llm_0_5b.yaml; one step, one export."""
    rng = np.random.default_rng(0)
    with open(tmp_path / "tokens.jsonl", "w") as file:
        for index in range(8):
            record = {
                "index": index,
                "split": "train" if index else "validation",
                "text": "abc",
                "gender": "female",
                "language": "en",
                "pitch": 200.0,
                "speed": 4.0,
                "global_ids": rng.integers(0, 16, 32).tolist(),
                "semantic_ids": rng.integers(0, 64, 10).tolist(),
            }
            file.write(json.dumps(record) + "\n")
    run = tmp_path / "run"
    config = LLMTrainingConfig(
        tokens=str(tmp_path / "tokens.jsonl"),
        model=str(start),
        tokenizer=str(start / "tokenizer"),
        init_from=str(start),
        loop=LoopConfig(steps=1, evaluate_every=1, checkpoint_every=1),
        data=TokenDataConfig(row_length=96, batch_rows=4, evaluation_batches=1),
        mesh=MeshConfig(data=1),
    )
    monkeypatch.setattr(hardware, "peak_flops", lambda device: 1e9)
    llm_run.train(config, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [line] = [line for line in lines if line["group"] == "train"]
    figures = [line[name] for name in ("tokens", "targets", "attention_pairs")]
    useful = llm_step_flops(dataclasses.replace(CONFIG, vocab_size=ROWS), *figures)
    assert line["mfu"] == pytest.approx(useful / (1e9 * line["step_seconds"]))
    assert 0 < line["targets"] < line["tokens"] < 4 * 64  # prompts and padding
    export(run, tmp_path / "trained")
    export(start, tmp_path / "untrained")
    trained, untrained = (load_file(tmp_path / name / "LLM/model.safetensors") for name in ("trained", "untrained"))
    moved = np.abs(trained[qwen2.EMBEDDING] - untrained[qwen2.EMBEDDING]).max()
    assert 0 < moved < 1e-2  # a step of a warm-up away from where it began
    written = configuration.read_llm_config(tmp_path / "trained" / "LLM" / "config.json")
    assert written == dataclasses.replace(CONFIG, vocab_size=ROWS)


def test_bad_input_is_named_and_nothing_is_left(base, tmp_path):
    with pytest.raises(SparkError, match=f"vocab_size is 300, expected at least {KNOWN + len(spark_tokens(*CODES))}"):
        init_llm(base, tmp_path / "no", 300, 0, *CODES)
    with pytest.raises(SparkError, match="nowhere: no such directory"):
        init_llm(tmp_path / "nowhere", tmp_path / "no", ROWS)
    small = write_base(tmp_path / "small", dataclasses.replace(CONFIG, vocab_size=KNOWN - 1))
    with pytest.raises(SparkError, match=f"the tokenizer has {KNOWN} tokens, the embedding {KNOWN - 1} rows"):
        init_llm(small, tmp_path / "no", ROWS, 0, *CODES)
    folder = write_base(tmp_path / "qwen")
    tensors = load_file(folder / "model.safetensors")
    tensors[qwen2.EMBEDDING][5, 5] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(SparkError, match=r"model.embed_tokens.weight holds values that are not finite"):
        init_llm(folder, tmp_path / "no", ROWS, 0, *CODES)
    tokenizer = tokenizer_lib._text_tokenizer("bytes")
    tokenizer.add_tokens([AddedToken("<|task_vc|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(SparkError, match=r"tokenizer.json: has <\|task_vc\|> already; expected the tokenizer"):
        init_llm(folder, tmp_path / "no", ROWS, 0, *CODES)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SparkError, match="tokenizer.json: cannot be read .No such file"):
        init_llm(folder, tmp_path / "no", ROWS, 0, *CODES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qwen", "small"]
