"""The beginning of the slots' cache once more, as a CPU reads it: layer by layer, laid out for the products.

XLA's CPU backend copies what it takes out of a larger array before it multiplies by it. In the loop over layers that
are the keys and values of a layer, at every step: a third of the time of the embedded voice's decoder with 32 slots;
products with values whose time lies last took another fifth. These arrays are read whole and where they are.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from spark_jax.config import Qwen2Config

PLACES = 256  # of each slot, as far as it has so many; what lies behind is read from the whole cache

Keys = Float[Array, "slots kv_heads head_dim places"]
Values = Float[Array, "slots kv_heads places head_dim"]
NearRecent = tuple[Keys, Values]  # of a layer: those of the block that runs, at their places in the block


@flax.struct.dataclass
class NearCache:
    """Keys and values of a layer at the first places of all slots, and at a block more, which only makes room."""

    keys: Keys
    values: Values


def init(config: Qwen2Config, slots: int, capacity: int, block: int, dtype: DTypeLike) -> tuple[NearCache, ...]:
    """Returns the near caches of all layers for empty slots of this capacity; `block` is the length of a block."""
    time = min(PLACES + block, capacity)
    keys = jnp.zeros((slots, config.num_key_value_heads, config.head_dim, time), dtype)
    return tuple(NearCache(keys, keys.swapaxes(-1, -2)) for _ in range(config.num_hidden_layers))


def init_recent(near: tuple[NearCache, ...], length: int) -> tuple[NearRecent, ...]:
    """Returns the empty buffers of a block of `length` steps."""
    slots, kv_heads, dim, _ = near[0].keys.shape
    empty = jnp.zeros((slots, kv_heads, dim, length), near[0].keys.dtype)
    return tuple((empty, empty.swapaxes(-1, -2)) for _ in near)


def merge(
    near: tuple[NearCache, ...], recent: tuple[NearRecent, ...], starts: Int[Array, " slots"]
) -> tuple[NearCache, ...]:
    """Returns the near caches with the recent tokens, from `starts` on; those that begin behind the places are left."""
    starts = jnp.where(starts < PLACES, starts, near[0].keys.shape[-1])
    return tuple(
        NearCache(_merge(layer.keys, keys, starts, 3), _merge(layer.values, values, starts, 2))
        for layer, (keys, values) in zip(near, recent, strict=True)
    )


def _merge(buffer: Array, new: Array, starts: Array, axis: int) -> Array:
    places = jnp.stack([jnp.arange(buffer.shape[0]), starts], axis=-1)
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, axis)
    )
    return jax.lax.scatter(buffer, places, new, numbers, unique_indices=True, mode="drop")


def insert(
    near: tuple[NearCache, ...],
    slots: Int[Array, " rows"],
    keys: Float[Array, "layers rows kv_heads time head_dim"],
    values: Float[Array, "layers rows kv_heads time head_dim"],
) -> tuple[NearCache, ...]:
    """Returns the near caches with prompts at the beginning of slots, as `slot_cache.insert`."""
    time = min(keys.shape[3], near[0].keys.shape[-1]) if near else 0
    return tuple(
        NearCache(
            layer.keys.at[slots, :, :, :time].set(
                keys[number, :, :, :time].swapaxes(-1, -2).astype(layer.keys.dtype), mode="drop"
            ),
            layer.values.at[slots, :, :time].set(values[number, :, :, :time].astype(layer.values.dtype), mode="drop"),
        )
        for number, layer in enumerate(near)
    )
