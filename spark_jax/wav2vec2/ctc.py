"""wav2vec2 with a CTC head: speech recognition, by which this project trains its own feature extractor."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from spark_jax import config as config_lib
from spark_jax.nn import linear, norm
from spark_jax.wav2vec2 import model
from spark_jax.wav2vec2.pitch import FeaturePitch, FeaturePitchHead

BLANK = 0


@flax.struct.dataclass
class Recognition:
    """Result of a recognizer.

    Attributes:
      logits: scores of the labels.
      frames: number of each item's frames that are not padding.
      pitch: prediction of the pitch head; None without one.
    """

    logits: Float[Array, "batch frames vocab"]
    frames: Int[Array, " batch"]
    pitch: FeaturePitch | None


class Wav2Vec2ForCTC(nn.Module):
    """All `config.num_hidden_layers` layers, the final layer norm and a linear map to the vocabulary.

    The parameters under "wav2vec2" are those of `Wav2Vec2(config, num_layers=config.num_hidden_layers)`. With
    `pitch_head` the features, the mean of the tapped layers, are mapped to pitch as well.
    """

    config: config_lib.Wav2Vec2Config
    vocab_size: int
    dtype: DTypeLike = jnp.float32
    pitch_head: bool = False

    def __call__(
        self, input_values: Float[Array, "batch samples"], lengths: model.Lengths | None = None
    ) -> tuple[Float[Array, "batch frames vocab"], Int[Array, " batch"]]:
        """Returns the logits in float32 and the number of each item's frames that are not padding.

        Args:
          input_values: samples from `model.normalize_input`.
          lengths: number of samples of each item without padding; None: all.
        """
        result = self.recognize(input_values, lengths)
        return result.logits, result.frames

    @nn.compact
    def recognize(
        self, input_values: Float[Array, "batch samples"], lengths: model.Lengths | None = None
    ) -> Recognition:
        """Returns the logits, frames and pitch. The arguments are those of `__call__`."""
        config, pitch = self.config, None
        depth = config.num_hidden_layers
        encoder = model.Wav2Vec2(config, self.dtype, depth, name="wav2vec2")
        features, x = encoder.features_and_last(input_values, lengths)
        if self.pitch_head:
            pitch = FeaturePitchHead(name="pitch_head")(features)
        x = norm.LayerNorm(config.layer_norm_eps, name="final_norm")(x.astype(jnp.float32))
        self.sow("intermediates", "last_hidden_state", x)
        logits = linear.Linear(
            self.vocab_size, ("embed", "vocab"), kernel_init=nn.initializers.normal(0.02), name="head"
        )(x)
        if lengths is None:
            lengths = jnp.full(x.shape[:1], input_values.shape[1])
        return Recognition(logits, model.num_frames(jnp.asarray(lengths), config), pitch)


def ctc_loss(
    logits: Float[Array, "batch frames vocab"],
    frames: Int[Array, " batch"],
    targets: Int[Array, "batch target"],
    target_lengths: Int[Array, " batch"],
) -> Float[Array, ""]:
    """Returns the CTC loss with blank 0: the mean over items of the loss per target token (torch's "mean").

    An item whose target does not fit into its frames has a very large loss, not an infinite one: leave such items out
    of the data. Items without frames or without target tokens are left out of the mean.

    Args:
      logits: scores.
      frames: number of frames of each item without padding.
      targets: token ids in [1, vocab); ids beyond the target's length are ignored.
      target_lengths: number of tokens of each target.
    """
    frame_padding = jnp.arange(logits.shape[1]) >= frames[:, None]
    target_padding = jnp.arange(targets.shape[1]) >= target_lengths[:, None]
    losses = optax.ctc_loss(
        logits.astype(jnp.float32),
        frame_padding.astype(jnp.float32),
        jnp.where(target_padding, 0, targets),
        target_padding.astype(jnp.float32),
        blank_id=BLANK,
    )
    counted = (frames > 0) & (target_lengths > 0)
    losses = jnp.where(counted, losses / jnp.maximum(target_lengths, 1), 0.0)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(counted), 1)


def alignment_loss(logits: Float[Array, "batch frames vocab"], path: Int[Array, "batch frames"]) -> Float[Array, ""]:
    """Returns the cross-entropy per frame of one given CTC path, for data with known alignments.

    Frames whose path is −1 do not count. CTC sums over all paths and must first find the alignment by itself, which
    takes thousands of steps.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.maximum(path, 0))
    counted = path >= 0
    return jnp.sum(losses, where=counted) / jnp.maximum(jnp.sum(counted), 1)


def greedy_decode(
    logits: Float[np.ndarray, "batch frames vocab"], frames: Int[np.ndarray, " batch"]
) -> list[list[int]]:
    """Returns the token ids of each item's best path without repeats and blanks, computed on the host."""
    best = np.argmax(np.asarray(logits), axis=-1)
    decoded = []
    for path, length in zip(best, np.asarray(frames), strict=True):
        path = path[:length]
        keep = path != BLANK
        keep[1:] &= path[1:] != path[:-1]
        decoded.append(path[keep].tolist())
    return decoded
