"""What step and evaluation of the codec share: speech from given tokens, and the losses of a reconstruction."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from spark_jax.bicodec import losses
from spark_jax.bicodec.model import BiCodec, BiCodecOutput
from spark_jax.nn.mask import Mask
from spark_jax.training.state import Batch, Metrics


def reconstruct_from_tokens(codec: BiCodec, variables: Any, batch: Batch) -> BiCodecOutput:
    """Returns a waveform alone, made as at inference from the ids in the batch."""
    recons = codec.apply(variables, batch["semantic_ids"], batch["global_ids"], method=codec.detokenize)
    absent = dict.fromkeys(field.name for field in dataclasses.fields(BiCodecOutput))
    return BiCodecOutput(**absent | {"recons": recons})


def reconstruction_losses(
    outputs: BiCodecOutput,
    features: Float[Array, "batch frames features"] | None,
    wave: Float[Array, "batch samples"],
    sample_rate: int,
    mask: Mask = None,
) -> Metrics:
    """Returns the unweighted losses: vq, features and, where the sizes agree, codes (mean squared errors) where there
    are features; mel where there is a waveform."""
    terms = {}
    if features is not None:
        where = None if mask is None else mask[..., None]
        error = lambda ours: jnp.mean(jnp.square(ours - features), where=where)  # noqa: E731
        terms = {"vq": outputs.vq_loss, "features": error(outputs.pred_feat)}
        if outputs.quantized.shape == features.shape:
            terms["codes"] = error(outputs.quantized)
    if outputs.recons is not None:
        terms["mel"] = losses.multi_resolution_mel_loss(outputs.recons, wave, sample_rate)
    return terms
