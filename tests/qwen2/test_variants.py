"""Qwen3 (head size of its own, norms of queries and keys, no bias) and an untied head against transformers' goldens."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spark_jax import config as config_lib
from spark_jax import sharding
from spark_jax.config import Qwen2Config
from spark_jax.qwen2.cache import init_cache
from spark_jax.qwen2.model import Qwen2

spec = importlib.util.spec_from_file_location("qwen2_reference", Path(__file__).parent / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


class Variant:
    """One golden model with its compiled forward pass, and the loss that transformers computes."""

    def __init__(self, name: str):
        self.config, self.params, self.golden = reference.load(name)
        self.model = Qwen2(self.config)
        self.forward = jax.jit(self._forward)
        self.loss_and_gradients = jax.jit(jax.value_and_grad(self._loss))

    def _forward(self, params, ids, cache=None):
        hidden, cache = self.model.apply({"params": params}, ids, cache=cache)
        return self.model.apply({"params": params}, hidden, method=Qwen2.logits), hidden, cache

    def _loss(self, params):
        logits = self._forward(params, self.golden["in/input_ids"])[0][:, :-1]
        labels = self.golden["train/labels"][:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return jnp.sum(losses * (labels != -100)) / jnp.sum(labels != -100)


@pytest.fixture(scope="module", params=["qwen3", "qwen2_untied"])
def variant(request):
    return Variant(request.param)


def assert_close(ours, golden, relative=1e-5):
    np.testing.assert_allclose(ours, golden, rtol=0, atol=relative * np.abs(golden).max())


def test_parameters_are_the_documented_tree(variant):
    shapes = jax.eval_shape(lambda: variant.model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    assert jax.tree.map(jnp.shape, sharding.unbox(shapes)) == jax.tree.map(jnp.shape, variant.params)
    attention = variant.params["layers"]["attention"]
    assert ("bias" in attention["query"], "query_norm" in attention, "head" in variant.params) == (
        (False, True, False) if variant.config.qk_norm else (True, False, True)
    )


def test_logits_and_hidden_states_equal_the_golden(variant):
    logits, hidden, _ = variant.forward(variant.params, variant.golden["in/input_ids"])
    assert_close(hidden, variant.golden["hs2"])
    assert_close(logits, variant.golden["logits"])


def test_loss_and_gradients_equal_the_golden(variant):
    loss, gradients = variant.loss_and_gradients(variant.params)
    assert_close(loss, variant.golden["train/loss"])
    prefix = "train/grad/"
    golden = {name.removeprefix(prefix): g for name, g in variant.golden.items() if name.startswith(prefix)}
    first_layer = {**gradients, "layers": jax.tree.map(lambda g: g[:1], gradients["layers"])}
    jax.tree.map(assert_close, first_layer, reference.to_tree(golden, variant.config, layers=1))


@pytest.mark.extended
def test_greedy_decoding_through_the_cache_equals_the_golden(variant):
    """The prompt at once, then token by token: ids of transformers' uncached loop, and its logits."""
    prompt = variant.golden["in/input_ids"][:1]
    expected = variant.golden["greedy/new_ids"].tolist()
    cache = init_cache(variant.config, 1, prompt.shape[1] + len(expected))
    assert cache.keys.shape[-1] == variant.config.head_dim
    logits, _, cache = variant.forward(variant.params, prompt, cache)
    ids, rows = [], []
    for _ in expected:
        rows.append(logits[0, -1])
        ids.append(int(jnp.argmax(rows[-1])))
        logits, _, cache = variant.forward(variant.params, np.array([[ids[-1]]]), cache)
    assert ids == expected
    assert_close(np.stack(rows), variant.golden["greedy/logits"])


@pytest.mark.extended
def test_sharded_equals_one_device(variant):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    boxed = jax.eval_shape(lambda: variant.model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    params = jax.device_put(variant.params, sharding.tree_shardings(mesh, boxed))
    assert len(params["embed"]["embedding"].sharding.device_set) == 8
    assert not params["layers"]["attention"]["query"]["kernel"].sharding.is_fully_replicated
    ids = sharding.put_batch(mesh, {"ids": np.tile(variant.golden["in/input_ids"], (2, 1))})["ids"]
    assert_close(variant.forward(params, ids)[0], np.tile(variant.golden["logits"], (2, 1, 1)))
    loss, gradients = variant.loss_and_gradients(params)
    alone = variant.loss_and_gradients(variant.params)
    assert_close(loss, alone[0])
    jax.tree.map(assert_close, gradients, alone[1])


def test_head_size_is_a_number_for_every_caller():
    """Left out (as in configurations written before it was a field) or null: the quotient; given: itself."""
    content = config_lib.to_mapping(Qwen2Config())
    assert Qwen2Config().head_dim == 64 and "head_dim" not in content
    older = {name: value for name, value in content.items() if name not in ("head_dim", "attention_bias", "qk_norm")}
    for mapping in (older, older | {"head_dim": None}, json.loads(json.dumps(content))):
        assert config_lib.from_mapping(Qwen2Config, mapping, "test") == Qwen2Config()
    wide = dataclasses.replace(Qwen2Config(), head_dim=128)
    assert wide.head_dim == 128 and wide != Qwen2Config() and hash(wide) != hash(Qwen2Config())
    assert config_lib.from_mapping(Qwen2Config, config_lib.to_mapping(wide), "test") == wide
