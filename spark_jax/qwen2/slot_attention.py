"""Attention of one more token of each slot: to the tokens of the block of decode steps that runs, and to the cache."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spark_jax.nn.linear import wide_einsum
from spark_jax.qwen2.near_cache import NearCache, NearRecent
from spark_jax.qwen2.slot_cache import Recent, SlotCache

PART = 128  # places of the cache that are summed at a time on CPUs


@flax.struct.dataclass
class Block:
    """Where a block of decode steps stands, for `attend`.

    Attributes:
      cache: the tokens before the block.
      offset: the step of the block.
      longest: the longest slot that counts.
      window: places of the cache that are read; at least `longest`.
    """

    cache: SlotCache
    offset: Int[Array, ""]
    longest: Int[Array, ""]
    window: int = flax.struct.field(pytree_node=False)

    def attend(
        self,
        query: Float[Array, "slots 1 heads head_dim"],
        key: Float[Array, "slots 1 kv_heads head_dim"],
        value: Float[Array, "slots 1 kv_heads head_dim"],
        recent: Recent,
        layer: Int[Array, ""],
    ) -> tuple[Float[Array, "slots 1 heads head_dim"], Recent]:
        """Adds a token of each slot to the recent ones, and attends to the slot's tokens in the block and the cache."""
        slots, _, heads, dim = query.shape
        kv_heads = key.shape[2]
        recent = tuple(
            jax.lax.dynamic_update_slice(
                buffer, new[:, 0, :, :, None][None].astype(buffer.dtype), (layer, 0, 0, 0, self.offset)
            )
            for buffer, new in zip(recent, (key, value), strict=True)
        )
        keys, values = (jax.lax.dynamic_index_in_dim(buffer, layer, keepdims=False) for buffer in recent)
        grouped = query.reshape(slots, kv_heads, heads // kv_heads, dim)
        ones = jnp.ones((*grouped.shape[:-1], 1), jnp.float32)
        nothing = Sums(ones * jnp.finfo(jnp.float32).min, ones * 0, jnp.zeros(grouped.shape, jnp.float32))
        seen = jnp.arange(keys.shape[-1]) <= self.offset
        sums = _add(nothing, grouped, keys, values, seen)
        # On CPUs the order of a long sum follows the window, which neighbors decide; a loop over parts of one size
        # gives the same bits in every window. Other devices would spend more time on starting the loop's kernels than
        # in them.
        sums = jax.lax.platform_dependent(
            sums,
            cpu=lambda sums: add_parts(sums, grouped, layer, self.cache, self.longest),
            default=lambda sums: _add_window(sums, grouped, layer, self.cache, 0, self.window),
        )
        mixed = (sums.mixed / sums.total).astype(query.dtype)
        return mixed.reshape(slots, 1, heads, dim), recent


@flax.struct.dataclass
class NearBlock:
    """Where a block of decode steps stands, for `attend` in layers that lie apart.

    Attributes:
      cache, offset, longest: see `Block`.
      near: what the layer has of the cache for itself.
      places: of each slot that `near` holds.
      window: places that are read; those behind `places` from the whole cache, as many as the longest slot needs.
    """

    cache: SlotCache
    near: NearCache
    offset: Int[Array, ""]
    longest: Int[Array, ""]
    places: int = flax.struct.field(pytree_node=False)
    window: int = flax.struct.field(pytree_node=False)

    def attend(
        self,
        query: Float[Array, "slots 1 heads head_dim"],
        key: Float[Array, "slots 1 kv_heads head_dim"],
        value: Float[Array, "slots 1 kv_heads head_dim"],
        recent: NearRecent,
        layer: Int[Array, ""],
    ) -> tuple[Float[Array, "slots 1 heads head_dim"], NearRecent]:
        """Does what `Block.attend` does."""
        keys, values = recent
        keys = _put(keys, key[:, 0, :, :, None], (0, 0, 0, self.offset))
        values = _put(values, value[:, 0, :, None], (0, 0, self.offset, 0))
        slots, _, heads, dim = query.shape
        grouped = query.reshape(slots, key.shape[2], -1, dim)
        scores = jnp.concatenate(
            [wide_einsum("skgd,skdt->skgt", grouped, part) for part in (self.near.keys, keys)], axis=-1
        )
        time = self.near.keys.shape[-1]
        old = jnp.arange(time) < jnp.minimum(self.cache.lengths, self.places)[:, None]
        new = jnp.broadcast_to(jnp.arange(keys.shape[-1]) <= self.offset, (slots, keys.shape[-1]))
        seen = jnp.concatenate([old, new], axis=-1)[:, None, None]
        scores = jnp.where(seen, scores * dim**-0.5, jnp.finfo(jnp.float32).min)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        mixed = sum(
            wide_einsum("skgt,sktd->skgd", part.astype(values.dtype), own)
            for part, own in zip(jnp.split(weights, [time], axis=-1), (self.near.values, values), strict=True)
        )
        sums = Sums(largest, jnp.sum(weights, axis=-1, keepdims=True), mixed)
        if self.window > self.places:
            sums = add_parts(sums, grouped, layer, self.cache, self.longest, self.places)
        mixed = (sums.mixed / sums.total).astype(query.dtype)
        return mixed.reshape(slots, 1, heads, dim), (keys, values)


def _put(buffer: Array, new: Array, place: tuple) -> Array:
    return jax.lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), place)


@flax.struct.dataclass
class Sums:
    """An attention over some of the keys: the largest score, and the sums of weights and of weighted values."""

    largest: Float[Array, "slots kv_heads group 1"]
    total: Float[Array, "slots kv_heads group 1"]
    mixed: Float[Array, "slots kv_heads group head_dim"]


def _add(sums: Sums, query: Array, keys: Array, values: Array, seen: Array) -> Sums:
    """Returns the sums with more keys; those that no query sees change nothing, to the bit."""
    scores = wide_einsum("skgd,skdt->skgt", query, keys) * query.shape[-1] ** -0.5
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    largest = jnp.maximum(sums.largest, jnp.max(scores, axis=-1, keepdims=True))
    before, weights = jnp.exp(sums.largest - largest), jnp.exp(scores - largest)
    mixed = wide_einsum("skgt,skdt->skgd", weights.astype(values.dtype), values)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return Sums(largest, sums.total * before + total, sums.mixed * before + mixed)


def _add_window(sums: Sums, query: Array, layer: Array, cache: SlotCache, start: Any, size: int) -> Sums:
    """Adds places of the cache from `start` on."""
    slots, kv_heads, _, dim = query.shape
    keys, values = (
        jax.lax.dynamic_slice(buffer, (layer, 0, 0, 0, start), (1, slots, kv_heads, dim, size))[0]
        for buffer in (cache.keys, cache.values)
    )
    seen = start + jnp.arange(size) < cache.lengths[:, None, None, None]
    return _add(sums, query, keys, values, seen)


def add_parts(sums: Sums, query: Array, layer: Array, cache: SlotCache, longest: Array, first: int = 0) -> Sums:
    """Adds places of the cache from `first` on by parts, as many as the longest slot needs."""
    part = min(PART, cache.keys.shape[-1])

    def add(number: Array, sums: Sums) -> Sums:
        return _add_window(sums, query, layer, cache, number * part, part)

    return jax.lax.fori_loop(first // part, (longest + part - 1) // part, add, sums)
