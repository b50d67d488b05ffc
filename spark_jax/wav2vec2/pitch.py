"""Pitch head of a recognizer, which makes its features carry pitch, and the head's losses.

Features trained on phonemes alone carry little pitch, so that a quantizer spends no codes on it.
"""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from spark_jax.nn.linear import Linear

SCALE = 0.2  # of log F0 within an utterance


@flax.struct.dataclass
class FeaturePitch:
    """Pitch predicted from features.

    Attributes:
      relative: log F0 minus its mean over the utterance, in units of `SCALE`.
      voicing: logit of each frame being voiced.
    """

    relative: Float[Array, "batch frames"]
    voicing: Float[Array, "batch frames"]


class FeaturePitchHead(nn.Module):
    """Linear map of features to pitch, in float32."""

    @nn.compact
    def __call__(self, features: Float[Array, "batch frames hidden"]) -> FeaturePitch:
        outputs = Linear(2, ("embed", None), kernel_init=nn.initializers.normal(0.02), name="linear")(features)
        return FeaturePitch(outputs[..., 0], outputs[..., 1])


def relative_pitch(
    f0: Float[Array, "batch frames"], valid: Bool[Array, "batch frames"]
) -> tuple[Float[Array, "batch frames"], Bool[Array, "batch frames"]]:
    """Returns log F0 minus its mean over the utterance's voiced frames, in units of `SCALE`, and the voiced frames.

    Args:
      f0: fundamental frequency in Hz, 0 where unvoiced.
      valid: True for frames that are no padding.
    """
    voiced = (f0 > 0) & valid
    logarithm = jnp.log(jnp.where(voiced, f0, 1.0))
    mean = jnp.sum(logarithm, axis=1, keepdims=True) / jnp.maximum(jnp.sum(voiced, axis=1, keepdims=True), 1)
    return jnp.where(voiced, (logarithm - mean) / SCALE, 0.0), voiced


def feature_pitch_losses(
    pitch: FeaturePitch, f0: Float[Array, "batch frames"], valid: Bool[Array, "batch frames"]
) -> dict[str, Float[Array, ""]]:
    """Returns the unweighted losses of a pitch head.

    Args:
      pitch: output of `FeaturePitchHead`.
      f0: fundamental frequency of the recordings in Hz, 0 where unvoiced.
      valid: True for frames that are no padding and whose pitch is known.

    Returns:
      `f0`: mean squared error of the relative pitch over voiced frames, whose variance is about 1; `voicing`:
      cross-entropy over valid frames in nats. Either is 0 if there are no such frames.
    """
    relative, voiced = relative_pitch(f0, valid)
    errors = jnp.square(pitch.relative - relative)
    crossings = optax.sigmoid_binary_cross_entropy(pitch.voicing, voiced.astype(jnp.float32))
    return {"f0": _mean(errors, voiced), "voicing": _mean(crossings, valid)}


def feature_pitch_sums(
    pitch: FeaturePitch, f0: Float[Array, "batch frames"], valid: Bool[Array, "batch frames"]
) -> dict[str, Float[Array, ""]]:
    """Returns sums to be added over batches, from which accuracy and explained variance follow.

    The arguments are those of `feature_pitch_losses`.

    Returns:
      `valid`, `voiced` and `voicing_correct`: numbers of frames; `squared_error` of the relative pitch and its
      `squares` over voiced frames. The explained variance is 1 − squared_error / squares.
    """
    relative, voiced = relative_pitch(f0, valid)
    return {
        "valid": jnp.sum(valid, dtype=jnp.float32),
        "voiced": jnp.sum(voiced, dtype=jnp.float32),
        "voicing_correct": jnp.sum((pitch.voicing > 0) == voiced, where=valid, dtype=jnp.float32),
        "squared_error": jnp.sum(jnp.square(pitch.relative - relative), where=voiced),
        "squares": jnp.sum(jnp.square(relative), where=voiced),
    }


def _mean(values: Array, where: Array) -> Float[Array, ""]:
    return jnp.sum(values, where=where) / jnp.maximum(jnp.sum(where), 1)
