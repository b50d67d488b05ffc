"""Dead-code reset: codes of the quantizer that no latent is near to are put onto latents of the batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spark_jax.bicodec.model import BiCodec
from spark_jax.nn.mask import Mask, downsample_mask
from spark_jax.training.codec.config import BiCodecTrainingConfig, DeadCodeResetConfig
from spark_jax.training.state import TrainState


def reset_is_due(config: DeadCodeResetConfig, state: TrainState) -> Bool[Array, ""]:
    """Returns whether codes are to be reset at the end of the step that `state` begins."""
    return ((state.step + 1) % config.every == 0) & (state.step < config.until)


def reset_dead_codes(
    codec: BiCodec,
    config: BiCodecTrainingConfig,
    state: TrainState,
    features: Float[Array, "batch frames features"],
    mask: Mask,
    params: Any,
    collections: Any,
) -> tuple[Any, Any]:
    """Moves codes of low usage onto random latents of the batch; they count as evenly used then.

    Args:
      state: the one before the step, whose number the draw depends on.
      params, collections: those after the step.

    Returns:
      Both with the new codes and their usage.
    """
    variables = {"params": {**params["generator"], **params["frozen"]}, **collections}
    latents, weights = codec.apply(variables, features, mask, method=quantizer_latents)
    usage = collections["code_statistics"]["quantizer"]["cluster_size"]
    even = jnp.sum(weights) / codec.config.quantizer.codebook_size
    key = jax.random.fold_in(jax.random.key(config.loop.seed), state.step)
    chosen = latents[jax.random.choice(key, latents.shape[0], usage.shape, p=weights / jnp.sum(weights))]
    dead = usage < config.dead_code_reset.below * even
    old = params["generator"]["quantizer"]
    new = old | {"codebook": jnp.where(dead[:, None], chosen, old["codebook"])}
    statistics = {"quantizer": {"cluster_size": jnp.where(dead, even, usage)}}
    params = params | {"generator": params["generator"] | {"quantizer": new}}
    return params, collections | {"code_statistics": statistics}


def quantizer_latents(
    codec: BiCodec, features: Float[Array, "batch time features"], mask: Mask
) -> tuple[Float[Array, "latents dim"], Float[Array, " latents"]]:
    """Returns what the codebook's rows stand for, of the whole batch, with weight 0 on padding."""
    latents, quantizer = codec.encoder(features, mask), codec.quantizer
    sizes = quantizer.config
    if sizes.input_dim != sizes.codebook_dim:
        latents = quantizer.in_project(latents)
    mask = downsample_mask(mask, math.prod(codec.config.encoder.sample_ratios))
    weights = jnp.ones(latents.shape[:2]) if mask is None else mask.astype(jnp.float32)
    return latents.reshape(-1, latents.shape[-1]), weights.reshape(-1)
