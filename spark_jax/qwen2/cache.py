"""The key-value cache of the decoder: an explicit pytree, passed in and returned."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spark_jax.config import Qwen2Config


@flax.struct.dataclass
class KVCache:
    """Keys (after rotary embedding) and values of the tokens seen so far.

    Item b holds `lengths[b]` tokens, at the first indices. What lies beyond is unspecified: the causal
    mask never shows it to a query, and the next tokens overwrite it.
    """

    keys: Float[Array, "layers batch kv_heads length head_dim"]
    values: Float[Array, "layers batch kv_heads length head_dim"]
    lengths: Int[Array, " batch"]

    @property
    def capacity(self) -> int:
        """Tokens that each item has room for; writes beyond it are dropped."""
        return self.keys.shape[3]

    def extend(self, length: int) -> "KVCache":
        """The same tokens with room for `length` tokens more."""
        room = ((0, 0), (0, 0), (0, 0), (0, length), (0, 0))
        return self.replace(keys=jnp.pad(self.keys, room), values=jnp.pad(self.values, room))


def init_cache(config: Qwen2Config, batch: int, length: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
    """An empty cache for `batch` items of up to `length` tokens; `dtype` is the model's compute type."""
    shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))
