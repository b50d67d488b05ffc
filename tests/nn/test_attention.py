"""Every attention backend against the plain one, values and gradients, on packed rows; which one a mesh gets."""

import itertools
from functools import partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import Mesh

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.nn.attention import causal_mask, choose_backend, grouped_query_attention, self_attention
from spark_jax.nn.cpu.blockwise_attention import blockwise_attention
from spark_jax.nn.fused_attention import (
    cudnn_attention,
    keep_attention,
    packed_cudnn_attention,
    segment_mask,
    splash_attention,
)


def random_inputs(batch, time, heads, kv_heads, dim, dtype=jnp.float32, cuts=2):
    """Queries, keys, values, weights of a sum over the results, and segments with padding last."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    segments = np.zeros((batch, time), np.int32)
    for row in range(batch):
        ends = sorted(rng.integers(1, time, cuts))
        for number, (start, end) in enumerate(itertools.pairwise([0, *ends]), 1):
            segments[row, start:end] = number
    query, key, value = (draw(batch, time, count, dim) for count in (heads, kv_heads, kv_heads))
    return query, key, value, draw(batch, time, heads, dim), jnp.asarray(segments)


def plain(query, key, value, segments):
    return grouped_query_attention(query, key.swapaxes(1, 2), value.swapaxes(1, 2), causal_mask(segments))


def value_and_gradients(attend, query, key, value, weight):
    def loss(*inputs):
        mixed = attend(*inputs)
        return jnp.sum(mixed.astype(jnp.float32) * weight), mixed

    (_, mixed), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)
    return mixed, gradients


def assert_equal(ours, theirs, tolerance):
    """All of them, by the norm of the difference over the norm; nothing is NaN."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("rows", "block"),
    [pytest.param(1, 4, marks=pytest.mark.extended), (3, 7), pytest.param(2, 64, marks=pytest.mark.extended)],
)
def test_blockwise_attention_is_attention(rows, block):
    query, key, value, weight, segments = random_inputs(rows, 18, 4, 2, 8)
    blockwise = partial(blockwise_attention, mask=causal_mask(segments), block=block)
    expected = value_and_gradients(lambda *x: plain(*x, segments), query, key, value, weight)
    assert_equal(value_and_gradients(blockwise, query, key, value, weight), expected, 1e-6)


@pytest.mark.extended
def test_blockwise_attention_in_bfloat16():
    query, key, value, weight, segments = random_inputs(3, 18, 4, 2, 8, jnp.bfloat16)
    blockwise = partial(blockwise_attention, mask=causal_mask(segments), block=7)
    inputs = (x.astype(jnp.float32) for x in (query, key, value))
    expected = value_and_gradients(lambda *x: plain(*x, segments), *inputs, weight)
    found = value_and_gradients(blockwise, query, key, value, weight)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    assert_equal(found, expected, 1e-2)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("time", "heads", "kv_heads", "dim"),
    [(256, 14, 2, 64), (200, 4, 2, 16), (40, 3, 3, 80)],
    ids=["release", "padded", "short"],
)
def test_splash_attention_is_attention(time, heads, kv_heads, dim):
    """Interpreted. Lengths that no block divides, sizes of heads that no lane does, padding, no NaN."""
    query, key, value, weight, segments = random_inputs(2, time, heads, kv_heads, dim)
    splash = partial(splash_attention, segment_ids=segments, interpret=True)
    expected = value_and_gradients(lambda *x: plain(*x, segments), query, key, value, weight)
    assert_equal(value_and_gradients(splash, query, key, value, weight), expected, 2e-6)


@pytest.mark.extended
def test_splash_attention_in_bfloat16():
    query, key, value, weight, segments = random_inputs(1, 128, 4, 2, 64, jnp.bfloat16)
    splash = partial(splash_attention, segment_ids=segments, interpret=True)
    expected = value_and_gradients(
        lambda *x: plain(*x, segments), *(x.astype(jnp.float32) for x in (query, key, value)), weight
    )
    found = value_and_gradients(splash, query, key, value, weight)
    assert found[0].dtype == jnp.bfloat16
    assert_equal(found, expected, 1e-2)


def blockwise(query, key, value, segment_ids):
    return self_attention("blockwise", query, key, value, segment_ids, causal_mask(segment_ids))


@pytest.mark.parametrize(
    "backend", [pytest.param(partial(splash_attention, interpret=True), marks=pytest.mark.extended), blockwise]
)
def test_attention_under_a_mesh(backend):
    """Each device has its rows and heads, and nothing is exchanged."""
    mesh = sharding.make_mesh(2, 2, 2)
    query, key, value, weight, segments = random_inputs(4, 128, 4, 2, 16)
    expected = value_and_gradients(lambda *x: plain(*x, segments), query, key, value, weight)
    heads = jax.NamedSharding(mesh, sharding.spec(mesh, "batch", None, "heads", None))
    rows = jax.NamedSharding(mesh, sharding.spec(mesh, "batch"))

    def run(query, key, value, weight, segments):
        mixed, pullback = jax.vjp(partial(backend, segment_ids=segments), query, key, value)
        return mixed, pullback(weight)

    compiled = jax.jit(sharding.under_mesh(run, mesh), in_shardings=(heads,) * 4 + (rows,), out_shardings=heads)
    compiled = compiled.lower(query, key, value, weight, segments).compile()
    found = compiled(*jax.device_put((query, key, value, weight), heads), jax.device_put(segments, rows))
    assert_equal(found, expected, 2e-6)
    assert found[1][1].addressable_shards[0].data.shape == (1, 128, 1, 16)
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-reduce", "all-to-all", "permute"))


def lower_for_cuda(monkeypatch, time, attend=cudnn_attention, wrap=lambda layer: layer, layers=3):
    """The text of cuDNN attention and its gradient in a loop over layers; told a version where cuDNN is absent."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    query, key, value, weight, segments = random_inputs(2, time, 14, 2, 64, jnp.bfloat16)

    def loss(query, key, value):
        of_segments = segments if attend is packed_cudnn_attention else segment_mask(segments)

        def layer(query, _):
            return attend(query, key, value, of_segments), None

        return jnp.sum(jax.lax.scan(wrap(layer), query, None, length=layers)[0].astype(jnp.float32) * weight)

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(query, key, value)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_cudnn_attention_is_cudnns_kernel(monkeypatch):
    text = lower_for_cuda(monkeypatch, 64)
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
    assert r"\22mask_type\22: \22CAUSAL\22" in text
    # The layers share the mask; what each of them kept for its gradient would be layers x batch x time x time.
    assert "tensor<2x1x64x64xbf16>" in text and "tensor<3x2x1x64x64xbf16>" not in text
    assert "tensor<2x66x14x64xbf16>" in lower_for_cuda(monkeypatch, 65)  # an odd length is padded


def test_packed_cudnn_attention_is_cudnns_kernel(monkeypatch):
    """Without a bias; and what a policy for attention keeps, a rematerialized layer does not compute again."""
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    text = lower_for_cuda(monkeypatch, 65, packed_cudnn_attention)
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert r"\22mask_type\22: \22PADDING_CAUSAL\22" in text and r"\22max_seg_per_batch\22: 4" in text
    for policy, times in ((keep_attention, 1), (jax.checkpoint_policies.nothing_saveable, 2)):
        text = lower_for_cuda(monkeypatch, 64, wrap=partial(jax.checkpoint, policy=policy, prevent_cse=False))
        assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == times


def masked(query, key, value, segments):
    return cudnn_attention(query, key, value, segment_mask(segments))


@pytest.mark.gpu(place=2)
@pytest.mark.parametrize("attend", [masked, packed_cudnn_attention], ids=["masked", "packed"])
@pytest.mark.parametrize(("time", "cuts"), [(301, 2), (2048, 30)])
def test_cudnn_attention_is_attention(gpu, attend, time, cuts):
    query, key, value, weight, segments = random_inputs(2, time, 14, 2, 64, jnp.bfloat16, cuts)
    found = value_and_gradients(lambda *x: attend(*x, segments), query, key, value, weight)
    with jax.default_matmul_precision("highest"):
        expected = value_and_gradients(
            lambda *x: plain(*x, segments), *(x.astype(jnp.float32) for x in (query, key, value)), weight
        )
    assert_equal(found, expected, 1e-2)


@pytest.mark.gpu(place=1)
def test_rows_of_too_many_segments_are_told(gpu):
    query, key, value, _, _ = random_inputs(2, 128, 4, 2, 64, jnp.bfloat16)
    segments = jnp.stack([jnp.arange(128) // 16, jnp.arange(128) // 32])
    mixed = jax.jit(packed_cudnn_attention)(query, key, value, segments)
    assert jnp.isnan(mixed[0]).any() and jnp.isfinite(mixed[1]).all()


class Device:
    """As much of a device of another platform as the choice looks at."""

    def __init__(self, platform):
        self.platform = platform


def mesh_of(platform, size):
    return Mock(spec=Mesh, devices=np.array([Device(platform)] * size), size=size)


@pytest.mark.parametrize(
    ("platform", "dtype", "expected"),
    [
        ("tpu", "float32", "splash"),
        ("tpu", "bfloat16", "splash"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", "float32", "xla"),
        ("cpu", "float32", "xla"),
    ],
)
def test_the_devices_decide(platform, dtype, expected):
    assert choose_backend("auto", mesh_of(platform, 4), jnp.dtype(dtype)) == expected
    assert choose_backend("xla", mesh_of(platform, 4), jnp.dtype(dtype)) == "xla"


@pytest.mark.parametrize(
    ("name", "platform", "size", "message"),
    [
        ("splash", "cpu", 1, "splash on cpu devices, expected tpu"),
        ("cudnn", "tpu", 1, "cudnn on tpu devices, expected gpu"),
        ("cudnn", "gpu", 1, "cudnn in float32, expected dtype bfloat16"),
        ("cudnn_packed", "gpu", 1, "cudnn_packed in float32, expected dtype bfloat16"),
        ("flash", "cpu", 1, "unknown backend 'flash', expected one of auto, xla"),
    ],
)
def test_what_the_devices_do_not_have(name, platform, size, message):
    with pytest.raises(SparkError, match=message):
        choose_backend(name, mesh_of(platform, size), jnp.float32)
