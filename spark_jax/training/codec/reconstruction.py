"""What step and evaluation of the codec share: speech from given tokens, and the losses of a reconstruction."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from spark_jax.bicodec import losses
from spark_jax.bicodec.model import BiCodec, BiCodecOutput
from spark_jax.bicodec.pitch import PitchPrediction, PitchTarget, pitch_losses
from spark_jax.nn.mask import Mask
from spark_jax.training.state import Batch, Metrics


def reconstruct_from_tokens(codec: BiCodec, variables: Any, batch: Batch) -> BiCodecOutput:
    """Returns a waveform, and the pitch for a harmonic source, made as at inference from the tokens in the batch; the
    voice is that of its reference clips, if it has some."""
    outputs = codec.apply(variables, **_said_by(batch), train=False, method=codec.wave_from_codes)
    return _waveform_alone(*outputs)


def train_from_tokens(
    codec: BiCodec, variables: Any, batch: Batch, train_speaker: bool, noise_key: Array
) -> tuple[BiCodecOutput, Any]:
    """Returns a waveform made in training from the tokens in the batch, and the collections afterwards.

    Args:
      train_speaker: whether the speaker branch, if it is heard, uses and updates the batch's statistics.
      noise_key: random key of a harmonic source's noise. The source is given the recording's pitch.
    """
    outputs, collections = codec.apply(
        variables,
        **_said_by(batch),
        train=train_speaker,
        pitch=pitch_target(batch),
        noise_key=noise_key,
        method=codec.wave_from_codes,
        mutable=[name for name in variables if name != "params"],
    )
    return _waveform_alone(*outputs), collections


def pitch_target(batch: Batch) -> PitchTarget | None:
    """Returns the pitch of the recordings; None where the batch has none."""
    return PitchTarget(batch["f0"], batch["f0_filled"], batch["f0_mean"]) if "f0" in batch else None


def _said_by(batch: Batch) -> dict[str, Array | None]:
    ids = ("semantic_ids", "global_ids")
    return {"reference_wave": batch.get("reference"), **{name: batch[name] for name in ids if name in batch}}


def _waveform_alone(recons: Float[Array, "batch samples"], pitch: PitchPrediction | None) -> BiCodecOutput:
    absent = dict.fromkeys(field.name for field in dataclasses.fields(BiCodecOutput))
    return BiCodecOutput(**absent | {"recons": recons, "pitch": pitch})


def reconstruction_losses(
    outputs: BiCodecOutput,
    features: Float[Array, "batch frames features"] | None,
    wave: Float[Array, "batch samples"],
    sample_rate: int,
    mask: Mask = None,
    pitch: PitchTarget | None = None,
) -> Metrics:
    """Returns the unweighted losses: vq, features and, where the sizes agree, codes (mean squared errors) where there
    are features; mel where there is a waveform; f0, voicing, mean_f0 and repetition where the recordings' pitch is
    given."""
    terms = {}
    if features is not None:
        where = None if mask is None else mask[..., None]
        error = lambda ours: jnp.mean(jnp.square(ours - features), where=where)  # noqa: E731
        terms = {"vq": outputs.vq_loss, "features": error(outputs.pred_feat)}
        if outputs.quantized.shape == features.shape:
            terms["codes"] = error(outputs.quantized)
    if outputs.recons is not None:
        terms["mel"] = losses.multi_resolution_mel_loss(outputs.recons, wave, sample_rate)
    if pitch is not None:
        terms |= pitch_losses(outputs.pitch, pitch)
        terms["repetition"] = losses.repetition_loss(outputs.recons, pitch.f0 == 0)
    return terms
