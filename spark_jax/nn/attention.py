"""Grouped-query attention with a mask, and the choice between it and the kernels; the softmax is in float32."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.nn.fused_attention import KEY_AXES, QUERY_AXES, cudnn_attention, segment_mask, splash_attention
from spark_jax.nn.linear import wide_einsum

AttentionBackend = Literal["auto", "xla", "rowwise", "splash", "cudnn"]
PLATFORMS = {"splash": ("tpu",), "cudnn": ("gpu", "cuda")}  # that a kernel exists on


def choose_backend(name: AttentionBackend, mesh: Mesh, dtype: jnp.dtype) -> AttentionBackend:
    """What "auto" means for a mesh, and whether anything else can run on it.

    The platform is that of the mesh's devices: a program for a TPU is compiled on machines that have none.

    Args:
      dtype: of the computation; cuDNN has no float32.

    Raises:
      SparkError: a backend that is unknown, or that the devices or the type do not have.
    """
    platform, half = mesh.devices.flat[0].platform, jnp.dtype(dtype).itemsize == 2
    if name == "auto":
        chosen = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform, "xla")
        return "xla" if chosen == "cudnn" and not half else chosen
    if name not in get_args(AttentionBackend):
        names = ", ".join(get_args(AttentionBackend))
        raise SparkError(f"attention: unknown backend {name!r}, expected one of {names}")
    if name in PLATFORMS and platform not in PLATFORMS[name]:
        raise SparkError(f"attention: {name} on {platform} devices, expected {PLATFORMS[name][0]}, or auto")
    if name == "cudnn" and not half:
        raise SparkError(f"attention: cudnn in {jnp.dtype(dtype).name}, expected dtype bfloat16, or auto")
    return name


def backend_mask(
    backend: AttentionBackend, segment_ids: Int[Array, "batch time"]
) -> Bool[Array, "batch time time"] | None:
    """The mask that `self_attention` wants for these segments, made once for all layers; None: none."""
    if backend == "splash":
        return None
    return segment_mask(segment_ids) if backend == "cudnn" else causal_mask(segment_ids)


def self_attention(
    backend: AttentionBackend,
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch time kv_heads dim"],
    value: Float[Array, "batch time kv_heads dim"],
    segment_ids: Int[Array, "batch time"],
    mask: Bool[Array, "batch time time"] | None,
) -> Float[Array, "batch time heads dim"]:
    """Causal attention of packed rows within their segments; all backends compute the same.

    Args:
      backend: what `choose_backend` gave.
      mask: of `backend_mask`.
    """
    if backend == "splash":
        return splash_attention(query, key, value, segment_ids)
    if backend == "cudnn":
        return cudnn_attention(query, key, value, mask)
    if backend == "rowwise":
        inputs = (QUERY_AXES, KEY_AXES, KEY_AXES, ("batch", None, None))
        attend = sharding.per_device(rowwise_causal_attention, inputs, QUERY_AXES, check_replicas=True)
        return attend(query, key, value, mask)
    return grouped_query_attention(query, key.swapaxes(1, 2), value.swapaxes(1, 2), mask)


def grouped_query_attention(
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch kv_heads length dim"],
    value: Float[Array, "batch kv_heads length dim"],
    mask: Bool[Array, "batch time length"],
) -> Float[Array, "batch time heads dim"]:
    """softmax(q·k / √dim)·v; each group of heads / kv_heads consecutive query heads shares one key head.

    Keys and values come head-major, as the products want them: with a cache [length, kv_heads] decoding on CPU
    spent most of its time turning it around. A query that the mask shuts off from every key gets the mean of
    the values, never NaN.
    """
    batch, time, heads, dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, dim)
    scores = wide_einsum("btkgd,bksd->bkgts", grouped, key)
    scores = jnp.where(mask[:, None, None], scores * dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bksd->btkgd", weights, value).reshape(batch, time, heads, dim)


def rowwise_causal_attention(
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch time kv_heads dim"],
    value: Float[Array, "batch time kv_heads dim"],
    mask: Bool[Array, "batch time time"],
    block: int = 80,
) -> Float[Array, "batch time heads dim"]:
    """`grouped_query_attention` under a causal mask, row after row and in blocks of queries, for training on CPU.

    A row's scores stay in the processor's cache, are computed again for the gradient, and end where their block of
    queries ends; the query heads of a key head are rows of one product. With gradients, ten rows of 320 take a third
    of the time. Rows follow one another, so under a mesh it is for `sharding.per_device`: XLA would gather them.
    """
    time, heads, dim = query.shape[1:]
    kv_heads = key.shape[2]
    groups = heads // kv_heads

    def attend_block(query, key, value, mask):
        """Queries [kv_heads, block, groups, dim] over the keys up to the block's end."""
        length = key.shape[1]
        scores = wide_einsum("kqd,ksd->kqs", query.reshape(kv_heads, -1, dim), key)
        scores = scores.reshape(kv_heads, -1, groups, length) * dim**-0.5
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("kqs,ksd->kqd", weights.reshape(kv_heads, -1, length), value).reshape(query.shape)

    @jax.checkpoint
    def attend(row):
        query, key, value, mask = row
        query = query.reshape(time, kv_heads, groups, dim).swapaxes(0, 1)
        key, value = key.swapaxes(0, 1), value.swapaxes(0, 1)
        ends = [(start, min(start + block, time)) for start in range(0, time, block)]
        blocks = [
            attend_block(query[:, start:end], key[:, :end], value[:, :end], mask[start:end, :end])
            for start, end in ends
        ]
        return jnp.concatenate(blocks, axis=1).swapaxes(0, 1).reshape(time, heads, dim)

    return jax.lax.map(attend, (query, key, value, mask))


def causal_mask(segment_ids: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """True where a query (axis 1) may see a key (axis 2): not later, and of the same segment."""
    time = segment_ids.shape[1]
    return jnp.tril(jnp.ones((time, time), bool)) & segment_mask(segment_ids)
