"""The frozen wav2vec2's features of a batch: of segments with context around them, or of whole utterances."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spark_jax.config import SparkConfig
from spark_jax.nn.mask import Mask
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.models import CodecModels
from spark_jax.training.state import Batch
from spark_jax.wav2vec2.model import Wav2Vec2, num_frames


def batch_features(
    models: CodecModels, config: BiCodecTrainingConfig, system: SparkConfig, params: Any, batch: Batch
) -> tuple[Array | None, Mask]:
    """Returns the features of a batch and their mask; (None, None) in the phase that starts from tokens.

    Args:
      params: the state's.
    """
    if models.extractor is None:
        return None, None
    if "lengths" in batch:
        return utterance_features(models.extractor, params["wav2vec2"], batch["input_values"], batch["lengths"])
    hop = system.wav2vec2.hop_length
    context, frames = round(config.data.context_seconds * system.sample_rate) // hop, batch["wave"].shape[1] // hop
    return extract_features(models.extractor, params["wav2vec2"], batch["input_values"], context, frames), None


def extract_features(
    extractor: Wav2Vec2, params: Any, windows: Float[Array, "batch samples"], context: int, frames: int
) -> Float[Array, "batch frames features"]:
    """Returns the features of the middle of windows: frame i begins at sample i · hop, as token i does.

    Args:
      windows: segments with context on both sides, normalized.
      context: frames to drop on the left; the right side's are what is left over.
      frames: of the segment.
    """
    features = extractor.apply({"params": params}, windows)
    return jax.lax.stop_gradient(features[:, context : context + frames])


def utterance_features(
    extractor: Wav2Vec2, params: Any, samples: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> tuple[Float[Array, "batch frames features"], Bool[Array, "batch frames"]]:
    """Returns the features of normalized whole utterances, as inference has them, and which frames are no padding."""
    features = extractor.apply({"params": params}, samples, lengths)
    mask = jnp.arange(features.shape[1]) < num_frames(lengths, extractor.config)[:, None]
    return jax.lax.stop_gradient(features), mask
