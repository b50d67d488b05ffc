"""Speech ↔ tokens for padded batches: wav2vec2 and BiCodec one after the other, ready to be compiled."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.wav2vec2.model import Length, Wav2Vec2, normalize_input, num_frames


def num_tokens(length: Length, config: SparkConfig) -> Length:
    """Semantic tokens that stand for `length` samples, an integer or an array: whole frames only."""
    return num_frames(length, config.wav2vec2) // math.prod(config.bicodec.encoder.sample_ratios)


def tokenize(
    wav2vec2_variables: Any,
    bicodec_variables: Any,
    samples: Float[Array, "batch time"],
    lengths: Int[Array, " batch"],
    clips: Float[Array, "batch clip"],
    *,
    config: SparkConfig,
) -> tuple[Int[Array, "batch tokens"], Int[Array, "batch global"]]:
    """Padded speech and reference clips → semantic and global ids; the first `num_tokens` of an item are its own.

    Args:
      samples: volume-normalized speech, zeros after each item's end.
      lengths: samples of each item.
      clips: `audio.normalize.reference_clip` of each item.
    """
    features = Wav2Vec2(config.wav2vec2).apply(wav2vec2_variables, normalize_input(samples, lengths), lengths)
    mask = jnp.arange(features.shape[1])[None] < num_frames(lengths, config.wav2vec2)[:, None]
    return BiCodec(config.bicodec).apply(bicodec_variables, features, clips, mask, method="tokenize")


def detokenize(
    bicodec_variables: Any,
    semantic_ids: Int[Array, "batch tokens"],
    global_ids: Int[Array, "batch global"],
    mask: Bool[Array, "batch tokens"],
    *,
    config: SparkConfig,
) -> Float[Array, "batch samples"]:
    """Padded semantic ids → waveforms."""
    return BiCodec(config.bicodec).apply(bicodec_variables, semantic_ids, global_ids, mask, method="detokenize")
