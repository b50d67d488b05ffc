"""Grouped-query attention with a mask; the softmax is in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bksd->btkgd", weights, value).reshape(batch, time, heads, dim)


def rowwise_causal_attention(
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch kv_heads time dim"],
    value: Float[Array, "batch kv_heads time dim"],
    mask: Bool[Array, "batch time time"],
    block: int = 80,
) -> Float[Array, "batch time heads dim"]:
    """`grouped_query_attention` under a causal mask, row after row and in blocks of queries, for training on CPU.

    A row's scores stay in the processor's cache, are computed again for the gradient, and end where their block of
    queries ends: with gradients, ten rows of 320 take less than half the time. Rows follow one another, so a batch
    that is divided over devices would be gathered: one device only.
    """

    @jax.checkpoint
    def attend(row):
        query, key, value, mask = (part[None] for part in row)
        blocks = [
            grouped_query_attention(
                query[:, start : start + block], key[:, :, : start + block], value[:, :, : start + block],
                mask[:, start : start + block, : start + block],
            )
            for start in range(0, query.shape[1], block)
        ]  # fmt: skip
        return jnp.concatenate(blocks, axis=1)[0]

    return jax.lax.map(attend, (query, key, value, mask))


def causal_mask(segment_ids: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """True where a query (axis 1) may see a key (axis 2): not later, and of the same segment."""
    time = segment_ids.shape[1]
    return jnp.tril(jnp.ones((time, time), bool)) & (segment_ids[:, :, None] == segment_ids[:, None, :])
