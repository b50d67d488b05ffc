"""What training asks of the decoder: rematerialization, the type of every product, attention by a kernel."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.nn import attention
from spark_jax.nn.fused_attention import splash_attention
from spark_jax.performance.flops import traced_flops
from spark_jax.qwen2.model import Qwen2
from spark_jax.training.llm import step

CONFIG = dataclasses.replace(
    tiny().llm,
    vocab_size=64,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)
ROWS, TIME = 4, 128


def make_batch():
    """Rows of two segments and padding, with targets in both."""
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(1, 64, (ROWS, TIME)).astype(np.int32) for name in ("input_ids", "targets")}
    segments = np.repeat([[1, 2, 0]], [70, 50, 8], axis=1).repeat(ROWS, axis=0).astype(np.int32)
    positions = np.concatenate([np.arange(70), np.arange(50), np.zeros(8)])[None].repeat(ROWS, axis=0)
    classes = np.where(segments > 0, rng.integers(0, 4, segments.shape), 0).astype(np.int8)
    return batch | {"segment_ids": segments, "positions": positions.astype(np.int32), "classes": classes}


def loss_and_gradients(model, params, batch):
    loss = lambda params: step.completion_sums(model, params, batch, 64)["loss"]  # noqa: E731
    return jax.value_and_grad(loss)(params)


def initial_params():
    return sharding.unbox(Qwen2(CONFIG).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]


def assert_equal(ours, theirs, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(np.asarray(a) - b) <= tolerance * np.linalg.norm(b)


@pytest.fixture(scope="module")
def params():
    return jax.jit(initial_params)()


@pytest.fixture(scope="module")
def plain(params):
    """The step that keeps everything, compiled, and what it gives."""
    compiled = jax.jit(partial(loss_and_gradients, Qwen2(CONFIG))).lower(params, make_batch()).compile()
    return compiled, compiled(params, make_batch())


@pytest.mark.extended
def test_rematerialization_changes_memory_alone(params, plain):
    sizes = {"none": plain[0].memory_analysis().temp_size_in_bytes}
    for remat in ("dots", "attention", "full"):
        model = Qwen2(CONFIG, remat=remat)
        compiled = jax.jit(partial(loss_and_gradients, model)).lower(params, make_batch()).compile()
        assert_equal(compiled(params, make_batch()), plain[1], 1e-6)
        sizes[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes["full"] < 0.9 * sizes["dots"] and sizes["dots"] < 0.6 * sizes["none"], sizes
    assert sizes["attention"] == sizes["full"], sizes  # XLA's attention has no result to keep: below


@pytest.mark.extended
def test_what_is_computed_again_beside_splash_attention(params, monkeypatch):
    """`dots` repeats no product, `attention` those of the projections and the MLP, `full` the kernel as well."""
    monkeypatch.setattr(attention, "splash_attention", partial(splash_attention, interpret=True))
    products = {}
    for remat in ("none", "dots", "attention", "full"):
        model = Qwen2(CONFIG, attention="splash", remat=remat)
        products[remat] = traced_flops(partial(loss_and_gradients, model), params, make_batch())
    tokens = ROWS * TIME * CONFIG.num_hidden_layers
    again = {remat: (value - products["none"]) / (2 * tokens) for remat, value in products.items()}
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 2 * 64 * 192  # but for the last product, that nothing needs
    kernel = 2 * 64 * TIME  # all pairs: a row is one block
    assert again == {"none": 0, "dots": 0, "attention": layer, "full": layer + kernel}


@pytest.mark.extended
def test_splash_attention_in_the_model(params, plain, monkeypatch):
    """In the loop over layers, rematerialized, on eight devices."""
    monkeypatch.setattr(attention, "splash_attention", partial(splash_attention, interpret=True))
    mesh = sharding.make_mesh(2, 2, 2)
    model = Qwen2(CONFIG, attention="splash", remat="dots")
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    shardings = sharding.tree_shardings(mesh, boxed)
    traced = sharding.under_mesh(partial(loss_and_gradients, model), mesh)
    jitted = jax.jit(traced, in_shardings=(shardings, sharding.batch_sharding(mesh)))
    assert_equal(jitted(jax.device_put(params, shardings), sharding.put_batch(mesh, make_batch())), plain[1], 1e-5)


def test_bfloat16_is_the_type_of_products_and_float32_of_sums(params):
    """As lowered, before a backend replaces types: no product of float32, no norm, softmax or loss of bfloat16."""
    model = Qwen2(CONFIG, jnp.bfloat16, remat="dots")
    lowered = jax.jit(partial(loss_and_gradients, model)).lower(params, make_batch())
    text = lowered.as_text()
    products = re.findall(r"stablehlo\.dot_general .*: \((.*)\) -> tensor<.*x([a-z]+\d+)>", text)
    assert len(products) > 25  # forward, again for the gradient, two for each gradient
    for operands, _ in products:
        assert re.findall(r"x([a-z]+\d+)>", operands) == ["bf16", "bf16"], operands
    assert {result for _, result in products} == {"bf16", "f32"}  # scores of attention and logits are float32
    # The only functions of bfloat16 are SwiGLU's, of the inner width.
    for name in ("rsqrt", "exponential", "log", "cosine", "sine", "divide"):
        found = re.findall(rf"stablehlo\.{name} .*: tensor<(?:.*?(\d+)x)?([a-z]+\d+)>", text)
        others = {size for size, kind in found if kind != "f32"}
        assert found and others <= {str(CONFIG.intermediate_size)}, (name, found)
    # Sums (of norms, softmax, loss, and of gradients over tokens) are float32, too.
    reduced = re.findall(r"stablehlo\.reduce\(.*: \(tensor<(?:\d+x)*([a-z]+\d+)>", text)
    assert reduced and "bf16" not in reduced
    assert {leaf.dtype for leaf in jax.tree.leaves(lowered.out_info)} == {jnp.dtype("float32")}
