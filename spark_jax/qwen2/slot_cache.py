"""The key-value cache of continuous batching: a fixed number of slots, each with a sequence of its own length.

Time lies last, so that heads of 64 are not padded to the 128 lanes of a TPU. The tokens of a block of decode steps go
to a small buffer of their own, at the same place in every slot; one scatter a block merges it into the cache. Writing
each token to the cache, where every slot is at another place, would touch whole tiles for one token.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from spark_jax import sharding
from spark_jax.config import Qwen2Config
from spark_jax.nn.linear import wide_einsum

PART = 128  # places of the cache that are summed at a time on CPUs
KEY_AXES = ("layers", "batch", "kv_heads", None, None)  # of the cache and of recent tokens, for `sharding`

# Keys and values of the tokens of the block that runs, at their places in the block.
Recent = tuple[
    Float[Array, "layers slots kv_heads head_dim block"], Float[Array, "layers slots kv_heads head_dim block"]
]


@flax.struct.dataclass
class SlotCache:
    """Keys (after rotary embedding) and values of all slots.

    Slot s holds `lengths[s]` tokens at its first places. The content of the others is unspecified but finite.
    """

    keys: Float[Array, "layers slots kv_heads head_dim capacity"]
    values: Float[Array, "layers slots kv_heads head_dim capacity"]
    lengths: Int[Array, " slots"]


@flax.struct.dataclass
class Block:
    """Where a block of decode steps stands.

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


def init_slots(config: Qwen2Config, slots: int, capacity: int, dtype: DTypeLike = jnp.float32) -> SlotCache:
    """Returns the cache of empty slots of `capacity` tokens each; `dtype` is the model's compute type."""
    shape = (config.num_hidden_layers, slots, config.num_key_value_heads, config.head_dim, capacity)
    return SlotCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(slots, jnp.int32))


def init_recent(cache: SlotCache, length: int) -> Recent:
    """Returns the empty buffer of a block of `length` steps."""
    empty = jnp.zeros((*cache.keys.shape[:-1], length), cache.keys.dtype)
    return empty, empty


def attend(
    query: Float[Array, "slots 1 heads head_dim"],
    key: Float[Array, "slots 1 kv_heads head_dim"],
    value: Float[Array, "slots 1 kv_heads head_dim"],
    recent: Recent,
    layer: Int[Array, ""],
    block: Block,
) -> tuple[Float[Array, "slots 1 heads head_dim"], Recent]:
    """Adds a token of each slot to the recent ones, and attends to the slot's tokens in the block and in the cache."""
    slots, _, heads, dim = query.shape
    kv_heads = key.shape[2]
    recent = tuple(
        jax.lax.dynamic_update_slice(
            buffer, new[:, 0, :, :, None][None].astype(buffer.dtype), (layer, 0, 0, 0, block.offset)
        )
        for buffer, new in zip(recent, (key, value), strict=True)
    )
    keys, values = (jax.lax.dynamic_index_in_dim(buffer, layer, keepdims=False) for buffer in recent)
    grouped = query.reshape(slots, kv_heads, heads // kv_heads, dim)
    ones = jnp.ones((*grouped.shape[:-1], 1), jnp.float32)
    nothing = _Sums(ones * jnp.finfo(jnp.float32).min, ones * 0, jnp.zeros(grouped.shape, jnp.float32))
    seen = jnp.arange(keys.shape[-1]) <= block.offset
    sums = _add(nothing, grouped, keys, values, seen)
    # On CPUs the order of a long sum follows the window, which neighbors decide; a loop over parts of one size gives
    # the same bits in every window. Other devices would spend more time on starting the loop's kernels than in them.
    sums = jax.lax.platform_dependent(sums, grouped, layer, block, cpu=_add_parts, default=_add_window)
    mixed = (sums.mixed / sums.total).astype(query.dtype)
    return mixed.reshape(slots, 1, heads, dim), recent


@flax.struct.dataclass
class _Sums:
    """An attention over some of the keys: the largest score, and the sums of weights and of weighted values."""

    largest: Float[Array, "slots kv_heads group 1"]
    total: Float[Array, "slots kv_heads group 1"]
    mixed: Float[Array, "slots kv_heads group head_dim"]


def _add(sums: _Sums, query: Array, keys: Array, values: Array, seen: Array) -> _Sums:
    """Returns the sums with more keys; those that no query sees change nothing, to the bit."""
    scores = wide_einsum("skgd,skdt->skgt", query, keys) * query.shape[-1] ** -0.5
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    largest = jnp.maximum(sums.largest, jnp.max(scores, axis=-1, keepdims=True))
    before, weights = jnp.exp(sums.largest - largest), jnp.exp(scores - largest)
    mixed = wide_einsum("skgt,skdt->skgd", weights.astype(values.dtype), values)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return _Sums(largest, sums.total * before + total, sums.mixed * before + mixed)


def _add_window(
    sums: _Sums, query: Array, layer: Array, block: Block, start: Any = 0, size: int | None = None
) -> _Sums:
    """Adds places of the cache; by default all of the window."""
    slots, kv_heads, _, dim = query.shape
    size = block.window if size is None else size
    keys, values = (
        jax.lax.dynamic_slice(buffer, (layer, 0, 0, 0, start), (1, slots, kv_heads, dim, size))[0]
        for buffer in (block.cache.keys, block.cache.values)
    )
    seen = start + jnp.arange(size) < block.cache.lengths[:, None, None, None]
    return _add(sums, query, keys, values, seen)


def _add_parts(sums: _Sums, query: Array, layer: Array, block: Block) -> _Sums:
    """Adds the window by parts, as many as the longest slot needs."""
    part = min(PART, block.window)

    def add(number: Array, sums: _Sums) -> _Sums:
        return _add_window(sums, query, layer, block, number * part, part)

    return jax.lax.fori_loop(0, (block.longest + part - 1) // part, add, sums)


def merge(cache: SlotCache, recent: Recent, added: Int[Array, " slots"]) -> SlotCache:
    """Returns the cache with the first `added` recent tokens of each slot.

    Whole buffers are written, so that a slot needs room for a block behind its tokens. Slots without a new token aim
    behind the end, where writes are dropped.
    """
    capacity = cache.keys.shape[-1]
    starts = jnp.where(added > 0, cache.lengths, capacity)
    write = sharding.per_device(_merge, (KEY_AXES, KEY_AXES, ("batch",)), KEY_AXES)
    keys, values = (write(buffer, new, starts) for buffer, new in zip((cache.keys, cache.values), recent, strict=True))
    return SlotCache(keys, values, cache.lengths + added)


def _merge(buffer: Array, new: Array, starts: Array) -> Array:
    places = jnp.stack([jnp.arange(buffer.shape[1]), starts], axis=-1)
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(0, 2, 3, 4), inserted_window_dims=(1,), scatter_dims_to_operand_dims=(1, 4)
    )
    return jax.lax.scatter(buffer, places, new, numbers, unique_indices=True, mode="drop")


def insert(
    cache: SlotCache,
    slots: Int[Array, " rows"],
    keys: Float[Array, "layers rows kv_heads time head_dim"],
    values: Float[Array, "layers rows kv_heads time head_dim"],
    lengths: Int[Array, " rows"],
) -> SlotCache:
    """Returns the cache with prompts, as `cache.KVCache` holds them, at the beginning of slots.

    Rows that aim at a slot that does not exist are dropped.
    """
    rows = ("layers", None, "kv_heads", None, None)  # every device has the rows of all slots
    write = sharding.per_device(_insert, (KEY_AXES, (None,), rows), KEY_AXES)
    keys, values = (
        write(buffer, slots, new.swapaxes(-1, -2).astype(buffer.dtype))
        for buffer, new in zip((cache.keys, cache.values), (keys, values), strict=True)
    )
    return SlotCache(keys, values, cache.lengths.at[slots].set(lengths, mode="drop"))


def _insert(buffer: Array, slots: Array, new: Array) -> Array:
    count = buffer.shape[1]
    if axes := sharding.device_axes("batch"):
        slots = slots - jax.lax.axis_index(axes) * count
    slots = jnp.where(slots < 0, count, slots)  # negative ones would count from the end
    return buffer.at[:, slots, :, :, : new.shape[-1]].set(new, mode="drop")
