"""Grouped-query attention and the choice among its backends (plain XLA, kernels); the softmax is in float32."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.nn.cpu.blockwise_attention import blockwise_attention
from spark_jax.nn.fused_attention import (
    KEY_AXES,
    QUERY_AXES,
    cudnn_attention,
    packed_cudnn_attention,
    segment_mask,
    splash_attention,
)
from spark_jax.nn.linear import wide_einsum

AttentionBackend = Literal["auto", "xla", "blockwise", "splash", "cudnn", "cudnn_packed"]
PLATFORMS = {"splash": ("tpu",), "cudnn": ("gpu", "cuda"), "cudnn_packed": ("gpu", "cuda")}  # where each kernel exists


def choose_backend(name: str, mesh: Mesh, dtype: DTypeLike) -> AttentionBackend:
    """Returns the attention backend for a mesh: resolves "auto", and checks that any other choice can run there.

    The platform is that of the mesh's devices, not of this machine: programs for TPUs are also compiled on machines
    without one.

    Args:
      name: an `AttentionBackend`.
      dtype: the type of the computation; cuDNN's kernel has no float32.

    Raises:
      SparkError: the backend is unknown, or does not exist for these devices or this type.
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
    if name in ("cudnn", "cudnn_packed") and not half:
        raise SparkError(f"attention: {name} in {jnp.dtype(dtype).name}, expected dtype bfloat16, or auto")
    return name


def backend_mask(
    backend: AttentionBackend, segment_ids: Int[Array, "batch time"]
) -> Bool[Array, "batch time time"] | None:
    """Returns the mask that `self_attention` needs for these segments, made once for all layers.

    None for backends that build their own mask from the segments.
    """
    if backend in ("splash", "cudnn_packed"):
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
    """Computes causal attention within the segments of packed rows; all backends give the same result.

    Args:
      backend: the result of `choose_backend`.
      mask: the result of `backend_mask`.
    """
    if backend == "splash":
        return splash_attention(query, key, value, segment_ids)
    if backend == "cudnn":
        return cudnn_attention(query, key, value, mask)
    if backend == "cudnn_packed":
        return packed_cudnn_attention(query, key, value, segment_ids)
    if backend == "blockwise":
        inputs = (QUERY_AXES, KEY_AXES, KEY_AXES, ("batch", None, None))
        # It splits the batch into parts; under a mesh each device must split its own rows.
        attend = sharding.per_device(blockwise_attention, inputs, QUERY_AXES, check_replicas=True)
        return attend(query, key, value, mask)
    return grouped_query_attention(query, key.swapaxes(1, 2), value.swapaxes(1, 2), mask)


def grouped_query_attention(
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch kv_heads length dim"],
    value: Float[Array, "batch kv_heads length dim"],
    mask: Bool[Array, "batch time length"],
) -> Float[Array, "batch time heads dim"]:
    """Computes softmax(q·k / √dim)·v; each group of heads / kv_heads consecutive query heads shares one key head.

    Keys and values are head-major, the layout of the products: with a cache [length, kv_heads], decoding on CPUs spent
    most of its time on transposes. A query whose mask hides every key gets the mean of the values, never NaN.
    """
    batch, time, heads, dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, dim)
    scores = wide_einsum("btkgd,bksd->bkgts", grouped, key)
    scores = jnp.where(mask[:, None, None], scores * dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bksd->btkgd", weights, value).reshape(batch, time, heads, dim)


def causal_mask(segment_ids: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """Returns True where a query (axis 1) may see a key (axis 2): not later, and in the same segment."""
    time = segment_ids.shape[1]
    return jnp.tril(jnp.ones((time, time), bool)) & segment_mask(segment_ids)
