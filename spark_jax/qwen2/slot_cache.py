"""The key-value cache of continuous batching: a fixed number of slots, each with a sequence of its own length.

Time lies last, so that heads of 64 are not padded to the 128 lanes of a TPU. The tokens of a block of decode steps go
to a small buffer of their own, at the same place in every slot; one scatter a block merges it into the cache. Writing
each token to the cache, where every slot is at another place, would touch whole tiles for one token.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from spark_jax import sharding
from spark_jax.config import Qwen2Config
from spark_jax.qwen2 import near_cache
from spark_jax.qwen2.near_cache import NearCache, NearRecent

KEY_AXES = ("layers", "batch", "kv_heads", None, None)  # of the cache and of recent tokens, for `sharding`

# Keys and values of the tokens of the block that runs, at their places in the block.
Recent = tuple[
    Float[Array, "layers slots kv_heads head_dim block"], Float[Array, "layers slots kv_heads head_dim block"]
]


@flax.struct.dataclass
class SlotCache:
    """Keys (after rotary embedding) and values of all slots.

    Slot s holds `lengths[s]` tokens at its first places. The content of the others is unspecified but finite.

    Attributes:
      keys, values, lengths: of the slots.
      near: the first places once more, layer by layer, where a CPU decodes; see `near_cache`. Elsewhere it is empty.
    """

    keys: Float[Array, "layers slots kv_heads head_dim capacity"]
    values: Float[Array, "layers slots kv_heads head_dim capacity"]
    lengths: Int[Array, " slots"]
    near: tuple[NearCache, ...] = ()


def init_slots(
    config: Qwen2Config, slots: int, capacity: int, dtype: DTypeLike = jnp.float32, near_block: int = 0
) -> SlotCache:
    """Returns the cache of empty slots.

    Args:
      config: sizes of the model.
      slots: how many.
      capacity: tokens that each has room for.
      dtype: the model's compute type.
      near_block: the length of a block, where there are near caches.
    """
    shape = (config.num_hidden_layers, slots, config.num_key_value_heads, config.head_dim, capacity)
    near = near_cache.init(config, slots, capacity, near_block, dtype) if near_block else ()
    return SlotCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(slots, jnp.int32), near)


def init_recent(cache: SlotCache, length: int) -> Recent:
    """Returns the empty buffer of a block of `length` steps."""
    empty = jnp.zeros((*cache.keys.shape[:-1], length), cache.keys.dtype)
    return empty, empty


def merge(cache: SlotCache, recent: Recent | tuple[NearRecent, ...], added: Int[Array, " slots"]) -> SlotCache:
    """Returns the cache with the first `added` recent tokens of each slot.

    Whole buffers are written, so that a slot needs room for a block behind its tokens. Slots without a new token aim
    behind the end, where writes are dropped.
    """
    capacity = cache.keys.shape[-1]
    starts = jnp.where(added > 0, cache.lengths, capacity)
    near = near_cache.merge(cache.near, recent, starts) if cache.near else ()
    if isinstance(recent[0], tuple):  # of each layer
        recent = jnp.stack([keys for keys, _ in recent]), jnp.stack([values for _, values in recent]).swapaxes(-1, -2)
    write = sharding.per_device(_merge, (KEY_AXES, KEY_AXES, ("batch",)), KEY_AXES)
    keys, values = (write(buffer, new, starts) for buffer, new in zip((cache.keys, cache.values), recent, strict=True))
    return SlotCache(keys, values, cache.lengths + added, near)


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
    near = near_cache.insert(cache.near, slots, keys, values)
    rows = ("layers", None, "kv_heads", None, None)  # every device has the rows of all slots
    write = sharding.per_device(_insert, (KEY_AXES, (None,), rows), KEY_AXES)
    keys, values = (
        write(buffer, slots, new.swapaxes(-1, -2).astype(buffer.dtype))
        for buffer, new in zip((cache.keys, cache.values), (keys, values), strict=True)
    )
    return SlotCache(keys, values, cache.lengths.at[slots].set(lengths, mode="drop"), near)


def _insert(buffer: Array, slots: Array, new: Array) -> Array:
    count = buffer.shape[1]
    if axes := sharding.device_axes("batch"):
        slots = slots - jax.lax.axis_index(axes) * count
    slots = jnp.where(slots < 0, count, slots)  # negative ones would count from the end
    return buffer.at[:, slots, :, :, : new.shape[-1]].set(new, mode="drop")
