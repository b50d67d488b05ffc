"""Causal attention for CPUs in blocks of queries, with flash attention's gradient (arXiv 2205.14135).

The scores of a block end at its last query: later keys are never computed. The gradient keeps one log-sum of
exponentials for each query instead of its softmax. On two cores, with 5 rows of 320 tokens, a training step's calls
took a quarter less time than a loop over rows.
"""

import itertools
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spark_jax.nn.linear import wide_einsum

CHAINS = 2  # independent parts of the batch, which run in parallel: each of XLA's small products uses one thread

# Queries with the heads that share a key head side by side, so that they are rows of one matrix product.
Grouped = Float[Array, "batch kv_heads queries_groups dim"]


def blockwise_attention(
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch time kv_heads dim"],
    value: Float[Array, "batch time kv_heads dim"],
    mask: Bool[Array, "batch time time"],
    block: int = 80,
) -> Float[Array, "batch time heads dim"]:
    """Computes `attention.grouped_query_attention` under a causal mask.

    Args:
      mask: the result of `attention.causal_mask`; its columns after the block of a query are not read.
      block: the number of queries in a block.
    """
    rows = query.shape[0]
    bounds = sorted({rows * part // CHAINS for part in range(CHAINS + 1)})
    parts = [
        _attend(*(x[start:end] for x in (query, key, value, mask)), block) for start, end in itertools.pairwise(bounds)
    ]
    return jnp.concatenate(parts)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query: Array, key: Array, value: Array, mask: Array, block: int) -> Array:
    return _forward(query, key, value, mask, block)[0]


def _forward(query: Array, key: Array, value: Array, mask: Array, block: int) -> tuple[Array, tuple]:
    queries, keys, values = _by_key_head(query, key), key.swapaxes(1, 2), value.swapaxes(1, 2)
    groups = query.shape[2] // key.shape[2]
    mixed, log_sums = [], []
    for start, end in _blocks(query.shape[1], block):
        scores = _scores(queries[:, :, start * groups : end * groups], keys[:, :, :end], mask[:, start:end, :end])
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed.append(wide_einsum("bkqs,bksd->bkqd", weights.astype(value.dtype), values[:, :, :end]) / total)
        log_sums.append(highest + jnp.log(total))
    mixed = _by_query_head(jnp.concatenate(mixed, axis=2), query.shape).astype(query.dtype)
    return mixed, (query, key, value, mask, mixed, jnp.concatenate(log_sums, axis=2))


def _backward(block: int, residuals: tuple, gradient: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, mask, mixed, log_sums = residuals
    queries, keys, values = _by_key_head(query, key), key.swapaxes(1, 2), value.swapaxes(1, 2)
    groups, scale = query.shape[2] // key.shape[2], query.shape[-1] ** -0.5
    # The term that the softmax's gradient subtracts: Σ_s weight · its gradient, which equals mixed · gradient.
    product = mixed.astype(jnp.float32) * gradient.astype(jnp.float32)
    means = _by_key_head(jnp.sum(product, axis=-1, keepdims=True), key)
    gradient = _by_key_head(gradient, key)
    d_query, d_key, d_value = [], None, None
    for start, end in reversed(list(_blocks(query.shape[1], block))):  # the last block first: it has all keys
        rows = slice(start * groups, end * groups)
        q, g, k, v = queries[:, :, rows], gradient[:, :, rows], keys[:, :, :end], values[:, :, :end]
        weights = jnp.exp(_scores(q, k, mask[:, start:end, :end]) - log_sums[:, :, rows])
        d_scores = weights * (wide_einsum("bkqd,bksd->bkqs", g, v) - means[:, :, rows])
        d_scores, weights = d_scores.astype(query.dtype), weights.astype(query.dtype)
        d_query.append(jnp.einsum("bkqs,bksd->bkqd", d_scores, k))
        ours = wide_einsum("bkqs,bkqd->bksd", d_scores, q), wide_einsum("bkqs,bkqd->bksd", weights, g)
        if d_key is None:
            d_key, d_value = ours
        else:
            d_key, d_value = (whole.at[:, :, :end].add(x) for whole, x in zip((d_key, d_value), ours, strict=True))
    d_query = _by_query_head(jnp.concatenate(d_query[::-1], axis=2), query.shape) * scale
    d_key, d_value = d_key.swapaxes(1, 2) * scale, d_value.swapaxes(1, 2)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_attend.defvjp(_forward, _backward)


def _scores(queries: Grouped, keys: Array, mask: Bool[Array, "batch queries keys"]) -> Array:
    """Returns query · key / √dim in float32, with the lowest number where the mask is False."""
    batch, heads, _, dim = queries.shape
    scores = wide_einsum("bkqd,bksd->bkqs", queries, keys) * dim**-0.5
    grouped = scores.reshape(batch, heads, mask.shape[1], -1, mask.shape[2])
    return jnp.where(mask[:, None, :, None], grouped, jnp.finfo(jnp.float32).min).reshape(scores.shape)


def _blocks(time: int, block: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + block, time)) for start in range(0, time, block))


def _by_key_head(x: Float[Array, "batch time heads dim"], key: Float[Array, "batch time kv_heads _"]) -> Grouped:
    batch, time, _, dim = x.shape
    kv_heads = key.shape[2]
    return x.reshape(batch, time, kv_heads, -1, dim).swapaxes(1, 2).reshape(batch, kv_heads, -1, dim)


def _by_query_head(x: Grouped, shape: tuple[int, ...]) -> Float[Array, "batch time heads dim"]:
    batch, time, _, dim = shape
    return x.reshape(batch, x.shape[1], time, -1, dim).swapaxes(1, 2).reshape(shape)
