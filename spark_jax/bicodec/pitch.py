"""Pitch for the harmonic source: its prediction from latents and speaker vector, and the losses of this prediction.

log F0 = 5 + 0.4 · m + 0.2 · h, where m belongs to the speaker and is computed from the d-vector alone, and h belongs to
the frame. In training the source is given the recording's own pitch: with predictions, which are wrong at first, the
generator learns far more slowly.
"""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from spark_jax.bicodec.source import Pitch
from spark_jax.nn.linear import Linear, no_single_row
from spark_jax.nn.mask import Mask

# 148 Hz and its spread between speakers and within an utterance, in logarithms.
CENTER = 5.0
SPEAKER_SCALE = 0.4
FRAME_SCALE = 0.2

LOG_LOWEST, LOG_HIGHEST = 3.0, 8.0  # 20 and 2981 Hz
STEPS = 1024  # per unit of the logarithm: of 1.7 cents, a third of what can be heard
F0_TABLE = np.exp(np.linspace(LOG_LOWEST, LOG_HIGHEST, 5 * STEPS + 1)).astype(np.float32)


@flax.struct.dataclass
class PitchPrediction:
    """Predicted pitch.

    Attributes:
      speaker: m, the utterance's mean log F0 minus `CENTER`, in units of `SPEAKER_SCALE`.
      frame: h, log F0 minus the utterance's mean, in units of `FRAME_SCALE`.
      voicing: logit of each frame being voiced.
    """

    speaker: Float[Array, " batch"]
    frame: Float[Array, "batch frames"]
    voicing: Float[Array, "batch frames"]

    def decide(self) -> Pitch:
        """Returns the most likely pitch, in which a frame is either voiced or not.

        It is one of `F0_TABLE`. The phase of a source adds up the pitch of all frames, and with it rounding errors that
        depend on the shapes of a program: speech that is made in parts would differ from the whole.
        """
        logarithm = CENTER + SPEAKER_SCALE * self.speaker[:, None] + FRAME_SCALE * self.frame
        number = jnp.round((logarithm - LOG_LOWEST) * STEPS).astype(jnp.int32)
        f0 = jnp.take(jnp.asarray(F0_TABLE), number, mode="clip")
        return Pitch(f0, (self.voicing > 0).astype(jnp.float32))


@flax.struct.dataclass
class PitchTarget:
    """Pitch of recordings.

    Attributes:
      f0: fundamental frequency in Hz, 0 where unvoiced.
      filled: `f0` with positive values where unvoiced (`data.pitch_tracks.fill_unvoiced`).
      mean: geometric mean over the voiced frames of the whole utterance in Hz; 0 if there are none.
    """

    f0: Float[Array, "batch frames"]
    filled: Float[Array, "batch frames"]
    mean: Float[Array, " batch"]

    def pitch(self) -> Pitch:
        """Returns the pitch that the source is given in training."""
        return Pitch(self.filled, (self.f0 > 0).astype(jnp.float32))


class PitchHead(nn.Module):
    """Linear maps of the generator's latents and of the d-vector to pitch, in float32."""

    @nn.compact
    def __call__(
        self, latents: Float[Array, "batch frames channels"], d_vector: Float[Array, "batch channels"]
    ) -> PitchPrediction:
        d_vectors = no_single_row(d_vector.astype(jnp.float32))
        speaker = Linear(1, axes=("embed", None), name="speaker")(d_vectors)[: len(d_vector)]
        frame = Linear(2, axes=("embed", None), name="frame")(latents.astype(jnp.float32))
        return PitchPrediction(speaker[..., 0], frame[..., 0], frame[..., 1])


def pitch_losses(prediction: PitchPrediction, target: PitchTarget, mask: Mask = None) -> dict[str, Float[Array, ""]]:
    """Returns the unweighted losses of a prediction.

    Args:
      prediction: output of `PitchHead`.
      target: pitch of the same frames.
      mask: True for frames that are no padding; None: all.

    Returns:
      `f0`: mean squared error of h over voiced frames; `voicing`: cross-entropy over all frames in nats; `mean_f0`:
      mean squared error of m over utterances with voiced frames. Each is 0 if there is nothing to average.
    """
    voiced = target.f0 > 0
    known = target.mean > 0
    counted = jnp.ones_like(voiced) if mask is None else mask
    logarithm = jnp.log(jnp.where(known, target.mean, 1.0))
    relative = jnp.log(jnp.where(voiced, target.f0, 1.0)) - logarithm[:, None]
    frame_error = jnp.square(prediction.frame - relative / FRAME_SCALE)
    speaker_error = jnp.square(prediction.speaker - (logarithm - CENTER) / SPEAKER_SCALE)
    voicing_error = optax.sigmoid_binary_cross_entropy(prediction.voicing, voiced.astype(jnp.float32))
    return {
        "f0": _mean(frame_error, voiced & counted & known[:, None]),
        "voicing": _mean(voicing_error, counted),
        "mean_f0": _mean(speaker_error, known),
    }


def pitch_errors(prediction: PitchPrediction, target: PitchTarget, mask: Mask = None) -> dict[str, Float[Array, ""]]:
    """Returns the errors of a prediction in units that can be heard. The arguments are those of `pitch_losses`.

    Returns:
      `voicing_accuracy`: share of frames; `f0_semitones`: mean absolute error over voiced frames; `mean_f0_semitones`:
      mean absolute error of the utterances' means.
    """
    voiced, known = target.f0 > 0, target.mean > 0
    counted = jnp.ones_like(voiced) if mask is None else mask
    decided = prediction.decide()
    semitones = 12.0 / jnp.log(2.0)
    frames = jnp.abs(jnp.log(decided.f0) - jnp.log(jnp.where(voiced, target.f0, 1.0)))
    speaker = CENTER + SPEAKER_SCALE * prediction.speaker
    means = jnp.abs(speaker - jnp.log(jnp.where(known, target.mean, 1.0)))
    return {
        "voicing_accuracy": _mean((decided.voicing > 0.5) == voiced, counted),
        "f0_semitones": semitones * _mean(frames, voiced & counted),
        "mean_f0_semitones": semitones * _mean(means, known),
    }


def _mean(values: Array, where: Array) -> Float[Array, ""]:
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)


def pitch_to_feed(prediction: PitchPrediction | None, target: PitchTarget | None) -> Pitch | None:
    """Returns the pitch for the source: that of the recording if it is known, otherwise the prediction, if any."""
    if target is not None:
        return target.pitch()
    return None if prediction is None else prediction.decide()
