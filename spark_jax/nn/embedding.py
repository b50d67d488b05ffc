"""Token embeddings whose table may be divided over the vocabulary and over the embedding axis."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from spark_jax import sharding
from spark_jax.nn.convolution import Initializer


class Embedding(nn.Module):
    """Looks up rows of a float32 table [vocab, embed] and returns them in `dtype`; gradients are summed in float32."""

    vocab_size: int
    features: int
    table_init: Initializer
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        init = nn.with_logical_partitioning(self.table_init, ("vocab", "embed"))
        self.embedding = self.param("embedding", init, (self.vocab_size, self.features), jnp.float32)

    def __call__(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time embed"]:
        if self.is_initializing():
            return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)
        inputs, outputs = (("vocab", "embed"), ("batch", None)), ("batch", None, None)
        return sharding.per_device(self._look_up, inputs, outputs, check_replicas=True)(self.embedding, ids)

    def _look_up(self, table: Array, ids: Array) -> Array:
        """Looks up one device's rows of ids.

        Devices that divide the embedding axis exchange their ids, which are small; each looks all of them up in its
        own columns, and an all-to-all turns columns into rows. XLA's own partitioning copied the batch to every device.
        """
        columns, vocabulary = sharding.device_axes("embed"), sharding.device_axes("vocab")
        if columns:
            ids = jax.lax.all_gather(ids, columns, axis=0, tiled=True)
        if vocabulary:
            ids = ids - jax.lax.axis_index(vocabulary) * table.shape[0]
        x = jnp.take(table, ids, axis=0, mode="fill", fill_value=0 if vocabulary else None).astype(self.dtype)
        if vocabulary:  # negative ids count from the end in `take`
            x = jnp.where(ids[..., None] >= 0, x, 0)
        if columns:
            x = jax.lax.all_to_all(x, columns, split_axis=0, concat_axis=2, tiled=True)
        return jax.lax.psum(x, vocabulary) if vocabulary else x
