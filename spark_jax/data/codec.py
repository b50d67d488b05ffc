"""Examples of the codec's training: a segment, the same with context for wav2vec2, and a reference clip."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spark_jax.audio.normalize import highpass, volume_normalize
from spark_jax.config import SparkConfig
from spark_jax.data import manifest, pipeline
from spark_jax.errors import SparkError

Samples = Float[np.ndarray, " samples"]


class CodecExamples:
    """Makes batches of random segments (spec: BiCodec training, sample).

    Args:
      records: from `manifest.read_corpus`.
      config: sample rate, samples a token, length of the reference clip, volume normalisation.
      segment_seconds: length of the target; whole tokens.
      context_seconds: what wav2vec2 hears on each side of it; whole tokens, at least one (its last frame
        needs samples beyond the segment).
      high_pass_hz: corner of the high-pass filter.
      keep_in_memory: keep prepared utterances (filtered, normalised) as 16-bit samples.

      whole_utterances: rows hold whole utterances of at most a segment, as inference encodes them, in place of
        windows that cut through them; longer ones are left out, shorter ones end in zeros.

    Records with `semantic_ids` and `global_ids` (see `with_tokens`) give these in place of what the ids are
    made from.

    Raises:
      SparkError: lengths that are not whole tokens, or none; no utterance is short enough.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        config: SparkConfig,
        segment_seconds: float,
        context_seconds: float,
        high_pass_hz: float = 40.0,
        keep_in_memory: bool = False,
        whole_utterances: bool = False,
    ):
        self._config, self._whole_utterances = config, whole_utterances
        if whole_utterances:
            records = [record for record in records if record["duration"] <= segment_seconds]
            if not records:
                raise SparkError(f"no utterance lasts at most segment_seconds, {segment_seconds} s")
        self._records = records
        self._segment = whole_tokens("segment_seconds", segment_seconds, config)
        self._context = whole_tokens("context_seconds", context_seconds, config)
        self._high_pass_hz = high_pass_hz
        self._prepared: dict[int, np.ndarray] | None = {} if keep_in_memory else None

    def plan(self, batch_segments: int, seed: int) -> pipeline.Plan:
        return pipeline.shuffled_plan(len(self._records), batch_segments, seed)

    def load(self, indices: np.ndarray, rng: np.random.Generator) -> pipeline.Batch:
        """`wave` [rows, segment], `input_values` [rows, segment + 2·context] normalised for wav2vec2, and
        `reference` [rows, reference], float32. Whole utterances: no context, and `lengths` [rows] in samples.
        From tokens: `wave`, `semantic_ids` [rows, tokens] and `global_ids` [rows, global], int32."""
        rows = []
        for index in indices:
            audio, record = self._audio(int(index)), self._records[index]
            if "semantic_ids" in record:
                rows.append(self._tokens(audio, record, rng))
            else:
                rows.append(self._utterance(audio, rng) if self._whole_utterances else self._segment_of(audio, rng))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _audio(self, index: int) -> Samples:
        if self._prepared is not None and index in self._prepared:
            return self._prepared[index].astype(np.float32) / 32768
        config = self._config
        audio = manifest.read_audio(self._records[index]["wav_path"], config.sample_rate)
        if config.volume_normalize:
            audio = volume_normalize(audio)
        audio = highpass(audio, config.sample_rate, self._high_pass_hz).astype(np.float32)
        if self._prepared is not None:
            self._prepared[index] = np.round(audio * 32767).clip(-32768, 32767).astype(np.int16)
        return audio

    def _tokens(self, audio: Samples, record: dict[str, Any], rng: np.random.Generator) -> pipeline.Batch:
        hop = self._config.latent_hop_length
        count, ids = self._segment // hop, record["semantic_ids"]
        start = int(rng.integers(len(ids) - count + 1))
        return {
            "wave": cut(audio, start * hop, self._segment),
            "semantic_ids": np.asarray(ids[start : start + count], np.int32),
            "global_ids": np.asarray(record["global_ids"], np.int32),
        }

    def _utterance(self, audio: Samples, rng: np.random.Generator) -> pipeline.Batch:
        audio = audio[: self._segment]  # `duration` is rounded
        padded = cut(audio, 0, self._segment)
        return {
            "wave": padded,
            "input_values": normalize_window(padded, np.arange(self._segment) < len(audio)),
            "lengths": np.asarray(len(audio), np.int32),
            "reference": random_reference(audio, 0, self._segment, self._config.ref_segment_samples, rng),
        }

    def _segment_of(self, audio: Samples, rng: np.random.Generator) -> pipeline.Batch:
        segment, context = self._segment, self._context
        start = int(rng.integers(max(len(audio) - segment, 0) + 1))
        window = cut(audio, start - context, segment + 2 * context)
        values = normalize_window(window, cut(np.ones_like(audio), start - context, len(window)) > 0)
        reference = random_reference(audio, start, segment, self._config.ref_segment_samples, rng)
        return {"wave": window[context : context + segment], "input_values": values, "reference": reference}


def with_tokens(
    records: Sequence[dict[str, Any]], path: str, segment_seconds: float, config: SparkConfig
) -> list[dict[str, Any]]:
    """Records with the ids that `tools/encode_corpus.py` wrote for them; those shorter than a segment are left out.

    Raises:
      SparkError: the file cannot be read, or no record has long enough ids in it.
    """
    names = ("semantic_ids", "global_ids")
    encoded = {
        line["index"]: {name: line[name] for name in names} for line in manifest.read_jsonl(path, ["index", *names])
    }
    tokens = whole_tokens("segment_seconds", segment_seconds, config) // config.latent_hop_length
    joined = [record | encoded[record["index"]] for record in records if record["index"] in encoded]
    joined = [record for record in joined if len(record["semantic_ids"]) >= tokens]
    if not joined:
        raise SparkError(f"{path}: no utterance of the corpus has {tokens} semantic ids or more in it")
    return joined


def whole_tokens(name: str, seconds: float, config: SparkConfig) -> int:
    """Samples in `seconds`, which must be whole tokens: otherwise features and samples would not meet."""
    samples = round(seconds * config.sample_rate)
    hop = config.latent_hop_length
    if samples % hop or samples <= 0:
        raise SparkError(f"{name}: {seconds} s are {samples} samples, expected a positive multiple of {hop}")
    return samples


def cut(audio: Samples, start: int, length: int) -> Samples:
    """`length` samples from `start` on, zeros outside of the signal."""
    inside = audio[max(start, 0) : max(start + length, 0)]
    before = min(max(-start, 0), length)
    return np.pad(inside, (before, length - before - len(inside)))


def normalize_window(window: Samples, inside: np.ndarray) -> Samples:
    """Zero mean and unit variance over the samples of the utterance; those beyond its ends stay zero.

    Statistics over the zeros too would depend on how much silence a window happens to catch, which whole
    utterances at inference never do.
    """
    mean, variance = np.mean(window, where=inside), np.var(window, where=inside)
    return np.where(inside, (window - mean) / np.sqrt(variance + 1e-7), 0.0).astype(np.float32)


def random_reference(audio: Samples, start: int, segment: int, length: int, rng: np.random.Generator) -> Samples:
    """A random crop of `length` samples; shorter audio is repeated.

    When the utterance is longer than twice the segment, the segment (from `start` on) is zeroed in it first:
    the global tokens must not carry what is said in it.
    """
    if len(audio) > 2 * segment:
        audio = audio.copy()
        audio[start : start + segment] = 0.0
    if len(audio) < length:
        return np.resize(audio, length)
    start = int(rng.integers(len(audio) - length + 1))
    return audio[start : start + length]
