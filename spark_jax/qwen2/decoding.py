"""Decode steps over all slots: through a loop over stacked layers, or, on CPUs and GPUs, layers that lie apart.

XLA's CPU and GPU backends copy a layer's parameters, and what is read of its cache, out of the stacked arrays at every
step. On CPUs `take_apart` gives each layer arrays of its own, which lie in the same memory. On GPUs a block copies them
out once (`apart`), for all its steps. TPUs read stacked arrays where they are, and compile one body for all layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from spark_jax.qwen2 import near_cache, slot_cache
from spark_jax.qwen2.model import Qwen2, decode_apart
from spark_jax.qwen2.near_cache import PLACES, NearCache, NearRecent
from spark_jax.qwen2.slot_attention import Block, NearBlock
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
    model: Qwen2, params: Any, cache: SlotCache, length: int, longest: Int[Array, ""], window: int, apart: bool = False
) -> tuple[Tokens, Step]:
    """Returns the empty tokens of a block of `length` steps, and the step.

    Args:
      model: the decoder.
      params: stacked; of `take_apart`, where there are near caches.
      cache: the tokens before the block.
      length: of the block.
      longest: the longest slot that counts. On CPUs this much of the cache is read, whatever the window.
      window: places of the cache that are read elsewhere; at least `longest`.
      apart: copies each layer's parameters and its window out of the stacks, once for the block.
    """
    near, places = cache.near, PLACES
    if near:
        window = cache.keys.shape[-1]
    elif apart:
        count, places = cache.keys.shape[0], window
        layers = tuple(jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"]) for layer in range(count))
        params = {**params, "layers": layers}
        near = tuple(
            NearCache(cache.keys[layer, ..., :window], cache.values[layer, ..., :window].swapaxes(-1, -2))
            for layer in range(count)
        )
    if near:

        def step_apart(embedded: Array, recent: tuple[NearRecent, ...], offset: Array) -> tuple[Array, Any]:
            blocks = [NearBlock(cache, own, offset, longest, places, window) for own in near]
            return decode_apart(model, params, embedded, recent, blocks)

        return near_cache.init_recent(near, length), step_apart

    def step(embedded: Array, recent: Recent, offset: Array) -> tuple[Array, Recent]:
        block = Block(cache, offset, longest, window)
        return model.apply({"params": params}, embedded, recent, block, method=Qwen2.decode)

    return slot_cache.init_recent(cache, length), step
