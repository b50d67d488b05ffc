"""The language model's step: chunked loss, packing and accumulation give the same figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import record_files, tiny_model
from helpers.quick_compile import quick_jit, quickly
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.data import tokens
from spark_jax.data.token_sources import MemoryTokens
from spark_jax.errors import SparkError
from spark_jax.performance.flops import causal_pairs, llm_step_flops
from spark_jax.qwen2.model import Qwen2
from spark_jax.text.tokenizer import build_tokenizer
from spark_jax.training.llm import step
from spark_jax.training.optimizer import OptimizerConfig, make_optimizer
from spark_jax.training.state import new_state

CONFIG = dataclasses.replace(tiny().llm, vocab_size=64, num_hidden_layers=1)
MODEL = Qwen2(CONFIG)
OPTIMIZER = make_optimizer(OptimizerConfig(warmup_steps=0, schedule="constant", learning_rate=1e-2), 10)
ROWS, LENGTH = 8, 24


def init():
    variables = MODEL.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    return new_state({"params": variables["params"]}, OPTIMIZER.init)


def make_batch(seed=0):
    """Rows of two segments of random length and some padding; an uneven share of targets."""
    rng = np.random.default_rng(seed)
    batch = {name: np.zeros((ROWS, LENGTH), np.int32) for name in ("input_ids", "targets", "positions", "segment_ids")}
    batch |= {name: np.zeros((ROWS, LENGTH), np.int8) for name in ("classes", "tasks")}
    for row in range(ROWS):
        first, second = rng.integers(4, 12, 2)
        for segment, (start, end) in enumerate(((0, first), (first, first + second)), 1):
            ids = rng.integers(1, 64, end - start)
            batch["input_ids"][row, start:end] = ids
            batch["targets"][row, start : end - 1] = ids[1:]
            batch["classes"][row, start + 2 : end - 1] = rng.integers(1, 4, end - start - 3)
            batch["positions"][row, start:end] = np.arange(end - start)
            batch["segment_ids"][row, start:end] = segment
            batch["tasks"][row, start : end - 1] = segment * (batch["classes"][row, start : end - 1] != tokens.NONE)
    return batch


def run(mesh, accumulate=1, chunk=1000):
    """Metrics of two steps and the parameters after them."""
    state, shardings = sharding.initialize(mesh, init)
    train_step = quickly(sharding.jit_step(step.llm_step(MODEL, OPTIMIZER, accumulate, chunk), mesh, shardings))
    metrics = []
    for seed in range(2):
        state, result = train_step(state, sharding.put_batch(mesh, make_batch(seed)))
        metrics.append(jax.device_get(result))
    return metrics, state


@pytest.fixture(scope="module")
def params():
    return quick_jit(lambda: sharding.unbox(init().params))()


@pytest.fixture(scope="module")
def completion_sums():
    """Of a batch of the usual shape, with chunks that do not divide its 192 tokens."""
    return quick_jit(lambda params, batch: step.completion_sums(MODEL, params, batch, 50))


@pytest.mark.extended
def test_accumulation_and_chunks_change_nothing():
    metrics, state = run(sharding.make_mesh(2, 1, 1), accumulate=4, chunk=20)
    expected_metrics, expected_state = run(sharding.make_mesh(1))
    for ours, theirs in zip(metrics, expected_metrics, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, err_msg=name)
    # Adam's first steps are ±rate where the gradient is rounding noise: an absolute tolerance.
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-4),
        jax.device_get(state.params),
        jax.device_get(expected_state.params),
    )


def test_packed_and_unpacked_give_the_same_loss_and_gradients():
    """Sequences of the real pipeline, packed by it, and each in a row of its own."""
    tokenizer = build_tokenizer("bytes", 16, 8)
    model = Qwen2(dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size))
    initialize = lambda: sharding.unbox(model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])  # noqa: E731
    # An untrained model's loss hardly depends on its input.
    params = jax.tree.map(lambda leaf: 5 * leaf, quick_jit(initialize)())
    source = MemoryTokens(record_files.utterances(12), tokenizer, 96)
    packed_sequences, alone = (tokens.TokenSequences([source], tokenizer, length) for length in (128, 64))
    [packed] = packed_sequences.plan(16, None)(0)
    rows = np.empty(24, object)
    for i, sequence in enumerate(np.concatenate(packed)):
        rows[i] = np.array([sequence])
    batches = [
        sequences.load(some, [np.random.default_rng(0)] * len(some))
        for sequences, some in ((packed_sequences, packed), (alone, rows))
    ]
    assert batches[0]["segment_ids"].max() > 1 == batches[1]["segment_ids"].max()

    def loss(params, batch):
        sums = step.completion_sums(model, params, batch, 1000)
        return sums["loss"], sums

    figures = quick_jit(jax.value_and_grad(loss, has_aux=True))
    ((_, ours), our_grads), ((_, theirs), their_grads) = (figures(params, batch) for batch in batches)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, err_msg=name)
    assert ours["targets"] == (batches[0]["classes"] != tokens.NONE).sum() > 300
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(our_grads), jax.tree.leaves(their_grads), strict=True
    ):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 1e-5, jax.tree_util.keystr(path)


def test_useful_work_is_that_of_tokens_targets_and_pairs(params, completion_sums):
    """Of sequences of five and three tokens in a row of 24, with two targets and one: 21 (query, key) pairs."""
    batch = {name: np.zeros_like(value) for name, value in make_batch().items()}
    batch["segment_ids"][0, :8] = [1] * 5 + [2] * 3
    batch["positions"][0, :8] = [*range(5), *range(3)]
    batch["classes"][0, [2, 3, 6]] = tokens.SEMANTIC
    found = step.completion_metrics(completion_sums(params, batch))
    figures = [found[name] for name in ("tokens", "targets", "attention_pairs")]
    assert figures == [8, 3, causal_pairs([5, 3])] == [8, 3, 21]
    # Width 32, one layer, 4 query and 2 key heads of 8, inner width 48, 64 tokens of vocabulary.
    config = dataclasses.replace(
        CONFIG, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=48
    )
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    assert llm_step_flops(config, *map(float, figures)) == 6 * (8 * layer + 3 * 32 * 64 + 21 * 2 * 32)


def test_a_packed_row_counts_as_its_sequences_alone(params, completion_sums):
    batch = make_batch()
    whole = completion_sums(params, batch)
    parts = []
    for segment in (1, 2):
        alone = {name: np.zeros_like(value) for name, value in batch.items()}
        for row in range(ROWS):
            at = batch["segment_ids"][row] == segment
            for name in batch:
                alone[name][row, : at.sum()] = batch[name][row][at]
        parts.append(completion_sums(params, alone))
    for name, value in whole.items():
        np.testing.assert_allclose(parts[0][name] + parts[1][name], value, rtol=1e-5, err_msg=name)
    assert whole["targets"] == (batch["classes"] != tokens.NONE).sum()
    metrics = step.completion_metrics(whole)
    np.testing.assert_allclose(metrics["loss"], np.log(64), rtol=0.05)  # an untrained model


def test_losses_by_task_and_accuracies_are_those_of_the_sorted_logits(params, completion_sums):
    batch = make_batch()
    metrics = step.completion_metrics(completion_sums(params, batch))

    @quick_jit
    def all_logits(params, batch):
        hidden, _ = MODEL.apply({"params": params}, batch["input_ids"], batch["positions"], batch["segment_ids"])
        return MODEL.apply({"params": params}, hidden, method="logits")

    logits = np.asarray(all_logits(params, batch), np.float64)
    chosen = np.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    losses = np.log(np.exp(logits).sum(-1)) - chosen
    for task, name in ((1, "tts"), (2, "controllable_tts")):
        at = batch["tasks"] == task
        assert metrics[f"targets_{name}"] == at.sum() > 20
        np.testing.assert_allclose(metrics[f"loss_{name}"], losses[at].mean(), rtol=1e-5)
    ten_best = np.argsort(-logits, axis=-1)[..., :10]
    hits = (ten_best == batch["targets"][..., None])[batch["classes"] == tokens.SEMANTIC]
    assert 0 < hits.any(-1).mean() < 1
    np.testing.assert_allclose(metrics["accuracy_semantic"], hits[:, 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy_top10_semantic"], hits.any(-1).mean(), rtol=1e-6)


def test_the_table_names_what_does_not_fit():
    mesh = sharding.make_mesh(1, 2, 4)
    with pytest.raises(SparkError, match=r"key/kernel: axis 'kv_heads' of 2 is not divisible by 4"):
        sharding.initialize(mesh, init)
    boxed = jax.eval_shape(init)
    with pytest.raises(SparkError, match="'mlp' is not in the table"):
        sharding.tree_shardings(mesh, boxed, {name: rule for name, rule in sharding.RULES.items() if name != "mlp"})
    with pytest.raises(SparkError, match=r"meet on mesh axis \['fsdp'\]"):
        sharding.tree_shardings(mesh, boxed, {**sharding.RULES, "mlp": "fsdp"})
    with pytest.raises(SparkError, match="does not fit 8 devices"):
        sharding.make_mesh(4, 4, 1)


def test_a_mesh_that_takes_what_is_left_leaves_no_device_out():
    devices = jax.devices()[:6]
    assert dict(sharding.make_mesh(fsdp=3, devices=devices).shape) == {"data": 2, "fsdp": 3, "tensor": 1}
    problem = r"6 devices are no multiple of fsdp 4 · tensor 1 = 4 \(data is -1\); expected .*, one of 1, 2, 3, 6, or"
    with pytest.raises(SparkError, match=f"{problem} data 1 to leave 2 of them out"):
        sharding.make_mesh(fsdp=4, devices=devices)
    assert sharding.make_mesh(1, 4, devices=devices).size == 4
    with pytest.raises(SparkError, match="6 devices are no multiple of fsdp 2 · tensor 8 = 16 .* one of 1, 2, 3, 6$"):
        sharding.make_mesh(fsdp=2, tensor=8, devices=devices)
    with pytest.raises(SparkError, match="does not fit 6 devices"):
        sharding.make_mesh(fsdp=0, devices=devices)


def on_a_device(mesh, dtype, attention="xla", remat="none"):
    """Metrics of two steps of a model whose heads cuDNN takes."""
    config = dataclasses.replace(CONFIG, hidden_size=256, num_hidden_layers=2)
    model = Qwen2(config, jnp.dtype(dtype), attention=attention, remat=remat)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), sharding.unbox(jax.eval_shape(init_of(model))))
    boxed = jax.eval_shape(init_of(model))
    state = jax.device_put(state.replace(params=tiny_model.draw(state.params)), sharding.tree_shardings(mesh, boxed))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    train_step, metrics = sharding.jit_step(step.llm_step(model, OPTIMIZER, 2, 100), mesh, shardings), []
    for seed in range(2):
        batch = {name: np.pad(value, ((0, 0), (0, 128 - LENGTH))) for name, value in make_batch(seed).items()}
        state, result = train_step(state, sharding.put_batch(mesh, batch))
        metrics.append(jax.device_get(result))
    return metrics


def init_of(model):
    def init():
        variables = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        return new_state({"params": variables["params"]}, OPTIMIZER.init)

    return init


@pytest.mark.gpu(place=6)
def test_steps_on_a_gpu(gpu, cpu):
    with jax.default_matmul_precision("highest"):
        expected, found = on_a_device(cpu, "float32"), on_a_device(gpu, "float32")
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("loss", "grad_norm", "targets", "tokens", "attention_pairs"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)
    for attention in ("cudnn", "cudnn_packed"):
        for ours, theirs in zip(on_a_device(gpu, "bfloat16", attention, "dots"), expected, strict=True):
            for name in ("loss", "grad_norm"):
                np.testing.assert_allclose(ours[name], theirs[name], rtol=0.03, err_msg=f"{attention} {name}")
            assert ours["skipped"] == 0
