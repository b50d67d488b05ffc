"""Speech ↔ tokens for padded batches: the preparation on the host, and wav2vec2 and BiCodec, ready to be compiled."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from spark_jax.audio.normalize import reference_clip, volume_normalize
from spark_jax.bicodec.model import BiCodec
from spark_jax.bicodec.receptive_field import Context, generator_context, prenet_context
from spark_jax.config import SparkConfig
from spark_jax.wav2vec2.model import Length, Wav2Vec2, normalize_input, num_frames, num_samples

PaddedSpeech = dict[str, np.ndarray]  # "samples", "lengths" and "clips", see `tokenize`


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """Speech as the codec takes it: volume-normalized, with the clip that the speaker's tokens are made from."""

    samples: Float[np.ndarray, " time"]
    clip: Float[np.ndarray, " clip"]


def num_tokens(length: Length, config: SparkConfig) -> Length:
    """Returns the number of semantic tokens of `length` samples, an integer or an array: whole frames only."""
    return num_frames(length, config.wav2vec2) // math.prod(config.bicodec.encoder.sample_ratios)


def prepare(samples: Float[np.ndarray, " time"], config: SparkConfig) -> Utterance:
    """Normalizes the volume of samples at the model's rate and cuts the reference clip."""
    samples = samples.astype(np.float64, copy=False)  # as the reference, for the same rounding
    if config.volume_normalize:
        samples = volume_normalize(samples)
    clip = reference_clip(samples, config.ref_segment_samples)
    return Utterance(samples.astype(np.float32), clip.astype(np.float32))


def pad_speech(utterances: Sequence[Utterance], frames: int, rows: int, config: SparkConfig) -> PaddedSpeech:
    """Returns a batch for `tokenize`; rows beyond the utterances are of length 0.

    Args:
      utterances: at most `rows`.
      frames: wav2vec2 frames that there is room for; what is longer is cut off.
      rows: of the batch.
    """
    batch = {
        "samples": np.zeros((rows, num_samples(frames, config.wav2vec2)), np.float32),
        "lengths": np.zeros(rows, np.int32),
        "clips": np.zeros((rows, config.ref_segment_samples), np.float32),
    }
    for row, utterance in enumerate(utterances):
        samples = utterance.samples[: batch["samples"].shape[1]]
        batch["samples"][row, : len(samples)] = samples
        batch["lengths"][row] = len(samples)
        batch["clips"][row] = utterance.clip
    return batch


def tokenize(
    wav2vec2_variables: Any,
    bicodec_variables: Any,
    samples: Float[Array, "batch time"],
    lengths: Int[Array, " batch"],
    clips: Float[Array, "batch clip"],
    *,
    config: SparkConfig,
) -> tuple[Int[Array, "batch global"], Int[Array, "batch tokens"]]:
    """Returns global and semantic ids of padded speech; the first `num_tokens` of an item are its own.

    Everything is computed in float32: ids are where rounding shows.

    Args:
      samples: volume-normalized speech, zeros after each item's end.
      lengths: samples of each item.
      clips: the reference clip of each item.
    """
    with jax.default_matmul_precision("highest"):
        features = Wav2Vec2(config.wav2vec2).apply(wav2vec2_variables, normalize_input(samples, lengths), lengths)
        mask = jnp.arange(features.shape[1])[None] < num_frames(lengths, config.wav2vec2)[:, None]
        codec = BiCodec(config.bicodec)
        semantic_ids, global_ids = codec.apply(bicodec_variables, features, clips, mask, method="tokenize")
    return global_ids, semantic_ids


def tokenize_speakers(
    bicodec_variables: Any, clips: Float[Array, "batch clip"], *, config: SparkConfig
) -> Int[Array, "batch global"]:
    """Returns the global ids of reference clips, in float32; wav2vec2 has no part in them."""
    with jax.default_matmul_precision("highest"):
        return BiCodec(config.bicodec).apply(bicodec_variables, clips, method="tokenize_speakers")


def detokenize(
    bicodec_variables: Any,
    semantic_ids: Int[Array, "batch tokens"],
    global_ids: Int[Array, "batch global"],
    mask: Bool[Array, "batch tokens"],
    *,
    config: SparkConfig,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "batch samples"]:
    """Returns the waveforms of padded semantic ids, float32; `dtype` is the type of the vocoder's convolutions."""
    precision = "highest" if jnp.dtype(dtype) == jnp.float32 else "default"
    with jax.default_matmul_precision(precision):
        codec = BiCodec(config.bicodec, jnp.dtype(dtype))
        return codec.apply(bicodec_variables, semantic_ids, global_ids, mask, method="detokenize")


def detokenize_part(
    bicodec_variables: Any,
    semantic_ids: Int[Array, "batch window"],
    global_ids: Int[Array, "batch global"],
    mask: Bool[Array, "batch window"],
    phase: UInt32[Array, " batch"],
    place: Int[Array, " batch"],
    advance: Int[Array, " batch"],
    *,
    config: SparkConfig,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "batch samples"], UInt32[Array, " batch"]]:
    """Returns parts of waveforms, float32, and phases; see `BiCodec.detokenize_part` and `part_context`."""
    precision = "highest" if jnp.dtype(dtype) == jnp.float32 else "default"
    contexts = prenet_context(config.bicodec.prenet), generator_context(config.bicodec)
    with jax.default_matmul_precision(precision):
        codec = BiCodec(config.bicodec, jnp.dtype(dtype))
        arrays = semantic_ids, global_ids, mask, phase, place, advance
        return codec.apply(bicodec_variables, *arrays, *contexts, method="detokenize_part")


def part_context(config: SparkConfig) -> Context:
    """Returns the tokens around a part of speech that its samples depend on."""
    prenet, generator = prenet_context(config.bicodec.prenet), generator_context(config.bicodec)
    return Context(prenet.before + generator.before, prenet.after + generator.after)
