"""The key-value cache of the decoder: an explicit pytree that is passed in and returned."""

import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from spark_jax.config import Qwen2Config


@flax.struct.dataclass
class KVCache:
    """Keys (after rotary embedding) and values of the tokens seen so far.

    Item b holds `lengths[b]` tokens at its first indices. The content of the others is unspecified: the causal mask
    hides it from every query, and later tokens overwrite it.
    """

    keys: Float[Array, "layers batch kv_heads length head_dim"]
    values: Float[Array, "layers batch kv_heads length head_dim"]
    lengths: Int[Array, " batch"]

    @property
    def capacity(self) -> int:
        """Returns the number of tokens that each item has room for; writes beyond it are dropped."""
        return self.keys.shape[3]


def init_cache(config: Qwen2Config, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> KVCache:
    """Returns an empty cache for `batch` items of up to `length` tokens; `dtype` is the model's compute type."""
    shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))
