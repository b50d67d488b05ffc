"""Decode steps over all slots: through a loop over stacked layers, or, on CPUs, through layers that lie apart.

XLA's CPU backend copies a layer's parameters out of the stacked arrays at every step. `take_apart` gives each layer
arrays of its own, which lie in the same memory. Other backends read stacked parameters where they are, and compile one
body for all layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from spark_jax.qwen2 import near_cache, slot_cache
from spark_jax.qwen2.model import Qwen2, decode_apart
from spark_jax.qwen2.near_cache import NearRecent
from spark_jax.qwen2.slot_attention import Block
from spark_jax.qwen2.slot_cache import Recent, SlotCache
from spark_jax.sharding import replicated

Tokens = Recent | tuple[NearRecent, ...]  # of the block that runs
# Takes embeddings, the tokens of the block so far, and how many these are; returns hidden states, and the tokens.
Step = Callable[[Float[Array, "slots 1 dim"], Tokens, Int[Array, ""]], tuple[Float[Array, "slots 1 dim"], Tokens]]


def take_apart(params: Any, mesh: Mesh) -> Any:
    """Returns the parameters with those of each layer in a tuple, as views of the same memory of a mesh of one CPU."""
    layers = params["layers"]
    count = jax.tree.leaves(layers)[0].shape[0]

    def view(leaf: jax.Array, layer: int) -> jax.Array:
        return jax.device_put(np.asarray(leaf)[layer], replicated(mesh), may_alias=True)

    apart = tuple(jax.tree.map(lambda leaf, layer=layer: view(leaf, layer), layers) for layer in range(count))
    return {**params, "layers": apart}


def begin(
    model: Qwen2, params: Any, cache: SlotCache, length: int, longest: Int[Array, ""], window: int
) -> tuple[Tokens, Step]:
    """Returns the empty tokens of a block of `length` steps, and the step.

    Args:
      model: the decoder.
      params: stacked; of `take_apart`, where there are near caches.
      cache: the tokens before the block.
      length: of the block.
      longest: the longest slot that counts. On CPUs this much of the cache is read, whatever the window.
      window: places of the cache that are read elsewhere; at least `longest`.
    """
    if cache.near:
        apart = lambda embedded, recent, offset: decode_apart(model, params, embedded, recent, cache, offset, longest)  # noqa: E731
        return near_cache.init_recent(cache.near, length), apart

    def step(embedded: Array, recent: Recent, offset: Array) -> tuple[Array, Recent]:
        block = Block(cache, offset, longest, window)
        return model.apply({"params": params}, embedded, recent, block, method=Qwen2.decode)

    return slot_cache.init_recent(cache, length), step
