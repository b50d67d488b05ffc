"""Grouped-query attention with a mask, and the choice between it and the kernels; the softmax is in float32."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.nn.blockwise_attention import blockwise_attention
from spark_jax.nn.fused_attention import KEY_AXES, QUERY_AXES, cudnn_attention, segment_mask, splash_attention
from spark_jax.nn.linear import wide_einsum

AttentionBackend = Literal["auto", "xla", "blockwise", "splash", "cudnn"]
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
    if backend == "blockwise":
        inputs = (QUERY_AXES, KEY_AXES, KEY_AXES, ("batch", None, None))
        # It divides its rows, which under a mesh would be those of several devices.
        attend = sharding.per_device(blockwise_attention, inputs, QUERY_AXES, check_replicas=True)
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


def causal_mask(segment_ids: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """True where a query (axis 1) may see a key (axis 2): not later, and of the same segment."""
    time = segment_ids.shape[1]
    return jnp.tril(jnp.ones((time, time), bool)) & segment_mask(segment_ids)
