"""Five updates of the language model's train step against torch.optim.AdamW on transformers' own classes."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from spark_jax import sharding
from spark_jax.data import tokens
from spark_jax.qwen2.model import Qwen2
from spark_jax.training.llm import step
from spark_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from spark_jax.training.state import new_state

TESTS = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("qwen2_reference", TESTS / "qwen2" / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

# As ADAMW in tools/make_goldens.py.
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3, schedule="inverse_sqrt", warmup_steps=2, betas=(0.9, 0.96), eps=1e-8, weight_decay=0.1
)


def make_batch(ids, labels):
    """The rows as batches of data.tokens: targets and classes stand one place before the token they mean."""
    targets = np.pad(ids[:, 1:], ((0, 0), (0, 1)))
    asked = np.pad(labels[:, 1:] != -100, ((0, 0), (0, 1)))
    return {
        "input_ids": ids,
        "targets": targets,
        "classes": np.where(asked, tokens.SEMANTIC, tokens.NONE).astype(np.int8),
        "positions": np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1)),
        "segment_ids": np.ones_like(ids),
    }


def distance(ours, theirs):
    return np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) / np.linalg.norm(np.asarray(theirs))


@pytest.mark.extended
@pytest.mark.parametrize("name", ["qwen3", "qwen2_untied"])
def test_five_updates_equal_torch(name):
    config, params, _ = reference.load(name)
    golden = load_file(TESTS / "assets" / name / "adamw.safetensors")
    model, optimizer = Qwen2(config), make_optimizer(OPTIMIZER, 5)
    schedule = make_schedule(OPTIMIZER, 5)
    np.testing.assert_allclose([schedule(i) for i in range(5)], golden["learning_rate"], rtol=1e-6)

    mesh = sharding.make_mesh(1)
    state, shardings = sharding.initialize(mesh, lambda: new_state({"params": params}, optimizer.init))
    start = jax.device_get(state.params)
    train_step = sharding.jit_step(step.llm_step(model, optimizer, accumulate=1, loss_chunk=100), mesh, shardings)
    for ids, labels, loss, norm in zip(
        *(golden[key] for key in ("input_ids", "labels", "loss", "grad_norm")), strict=True
    ):
        state, metrics = train_step(state, sharding.put_batch(mesh, make_batch(ids, labels)))
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)

    tensors = {key.removeprefix("param/"): value for key, value in golden.items() if key.startswith("param/")}
    expected = reference.to_tree(tensors, config, config.num_hidden_layers)
    for (path, ours), theirs, first in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(state.params)),
        jax.tree.leaves(expected),
        jax.tree.leaves(start),
        strict=True,
    ):
        where = jax.tree_util.keystr(path)
        assert distance(ours, theirs) < 1e-5, where
        assert distance(first, theirs) > 1e-4, where  # it has moved
        assert distance(ours - first, np.asarray(theirs) - first) < 1e-2, where
