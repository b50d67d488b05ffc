"""Examples of the codec's training: a segment, the same with context for wav2vec2, and a reference clip."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spark_jax.audio.normalize import highpass, volume_normalize
from spark_jax.config import SparkConfig
from spark_jax.data import pipeline, sources
from spark_jax.data.audio_sources import AudioSource
from spark_jax.data.pitch_tracks import pitch_fields
from spark_jax.errors import SparkError

Samples = Float[np.ndarray, "_"]

MAX_REPLACEMENTS = 100  # utterances tried in place of one that cannot be read


class CodecExamples:
    """Makes batches of random segments (spec: BiCodec training, sample).

    Args:
      parts: where the utterances come from.
      config: sample rate, samples a token, length of the reference clip, volume normalization.
      segment_seconds: length of the target; whole tokens.
      context_seconds: what wav2vec2 hears on each side of it; whole tokens, at least one (its last frame
        needs samples beyond the segment).
      high_pass_hz: corner of the high-pass filter.
      keep_in_memory: keep prepared utterances (filtered, normalized) as 16-bit samples.
      whole_utterances: rows hold whole utterances of at most a segment, as inference encodes them, in place of
        windows that cut through them; longer ones are dropped, shorter ones end in zeros.
      from_tokens: rows hold the utterances' ids in place of what the ids are made from; utterances with fewer than
        a segment's are dropped.
      reference_clips: rows from tokens hold a reference clip in place of the global ids.
      pitch: rows also hold the pitch of their tokens; the sources' records have `f0` then. Segments begin with a token.

    Raises:
      SparkError: lengths that are not whole tokens, or none; no utterance is left.
    """

    def __init__(
        self,
        parts: Sequence[AudioSource],
        config: SparkConfig,
        segment_seconds: float,
        context_seconds: float,
        high_pass_hz: float = 40.0,
        keep_in_memory: bool = False,
        whole_utterances: bool = False,
        from_tokens: bool = False,
        reference_clips: bool = False,
        pitch: bool = False,
    ):
        self._config, self._whole_utterances, self._from_tokens = config, whole_utterances, from_tokens
        self._reference_clips, self._pitch = reference_clips, pitch
        self._sources = sources.Concatenated(parts)
        self._segment = whole_tokens("segment_seconds", segment_seconds, config)
        self._context = whole_tokens("context_seconds", context_seconds, config)
        self._high_pass_hz = high_pass_hz
        self._prepared: dict[int, tuple[np.ndarray, dict[str, Any]]] | None = {} if keep_in_memory else None
        # One byte an utterance: which are taken.
        tokens, included = self._segment // config.latent_hop_length, []
        for source in parts:
            fits = np.ones(len(source), bool)
            if whole_utterances:
                fits &= source.seconds <= segment_seconds
                source.dropped.add("too long", int(np.count_nonzero(~fits)))
            if from_tokens:
                long_enough = source.num_tokens >= tokens
                source.dropped.add("fewer ids than a segment", int(np.count_nonzero(fits & ~long_enough)))
                fits &= long_enough
            included.append(fits)
        self._included = np.concatenate(included)
        if not self._included.any():
            wanted = [f"lasts at most segment_seconds, {segment_seconds} s"] * whole_utterances
            wanted += [f"has {tokens} semantic ids or more (of the setting tokens, or in its record)"] * from_tokens
            raise SparkError(f"no utterance of {len(self._included)} {' and '.join(wanted)}")

    def __len__(self) -> int:
        """Returns the number of utterances that are taken."""
        return int(np.count_nonzero(self._included))

    @property
    def dropped(self) -> dict[str, int]:
        """Utterances that are left out, by reason."""
        return sources.total([source.dropped.counts for source in self._sources.sources])

    def summary(self) -> dict[str, Any]:
        """Returns the utterances that an epoch has on average, their hours, and what is dropped."""
        utterances = hours = 0.0
        first = 0
        for source in self._sources.sources:
            weights = source.weights(0, len(source)) * self._included[first : first + len(source)]
            first += len(source)
            utterances += float(weights.sum())
            hours += float(weights @ source.seconds) / 3600
        return {"utterances": utterances, "hours": hours, "dropped": self.dropped}

    def plan(self, batch_segments: int, seed: int) -> pipeline.Plan:
        """Plans batches of segments, in random order and as often as the weights of their parts say."""
        return pipeline.weighted_plan(self._weights, batch_segments, seed)

    def _weights(self) -> Iterator[np.ndarray]:
        first = 0
        for weights in self._sources.weights():
            yield weights * self._included[first : first + len(weights)]
            first += len(weights)

    def load(self, indices: np.ndarray, rngs: Sequence[np.random.Generator]) -> pipeline.Batch:
        """Returns `wave` [rows, segment], `input_values` [rows, segment + 2·context] normalized for wav2vec2, and
        `reference` [rows, reference], float32. Whole utterances: no context, and `lengths` [rows] in samples.
        From tokens: `wave`, `semantic_ids` [rows, tokens] and `global_ids` [rows, global], int32, or `reference`. With
        pitch also what `pitch_tracks.pitch_fields` gives of each row."""
        rows = []
        for index, rng in zip(indices, rngs, strict=True):
            audio, record = self._readable(int(index), rng)
            make = self._utterance if self._whole_utterances else self._segment_of
            rows.append((self._tokens if self._from_tokens else make)(audio, record, rng))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _readable(self, index: int, rng: np.random.Generator) -> tuple[Samples, dict[str, Any]]:
        """An utterance; a random other one in place of one that cannot be read, where that is not an error."""
        for _ in range(MAX_REPLACEMENTS):
            [(source, _, [own])] = self._sources.parts(np.array([index]))
            try:
                return self._audio(index, source, int(own))
            except SparkError as error:
                source.dropped.fault("unreadable", error)
            while not self._included[index := int(rng.integers(len(self._included)))]:
                pass
        raise SparkError(f"{MAX_REPLACEMENTS} utterances in a row cannot be read; the last ones are in the log")

    def _audio(self, index: int, source: AudioSource, own: int) -> tuple[Samples, dict[str, Any]]:
        if self._prepared is None:
            return self._prepare(source, own)
        if index not in self._prepared:
            audio, record = self._prepare(source, own)
            self._prepared[index] = (np.round(audio * 32768).clip(-32768, 32767).astype(np.int16), record)
        # The first visit rounds too: a batch must not depend on what was read before a resume.
        samples, record = self._prepared[index]
        return samples.astype(np.float32) / 32768, record

    def _prepare(self, source: AudioSource, own: int) -> tuple[Samples, dict[str, Any]]:
        config = self._config
        audio, record = source.read(own)
        if config.volume_normalize:
            audio = volume_normalize(audio)
        return highpass(audio, config.sample_rate, self._high_pass_hz).astype(np.float32), record

    def _tokens(self, audio: Samples, record: dict[str, Any], rng: np.random.Generator) -> pipeline.Batch:
        hop = self._config.latent_hop_length
        count, ids = self._segment // hop, record["semantic_ids"]
        start = int(rng.integers(len(ids) - count + 1))
        row = {
            "wave": cut(audio, start * hop, self._segment),
            "semantic_ids": np.asarray(ids[start : start + count], np.int32),
        }
        if self._reference_clips:
            length = self._config.ref_segment_samples
            row["reference"] = random_reference(audio, start * hop, self._segment, length, rng)
        else:
            row["global_ids"] = np.asarray(record["global_ids"], np.int32)
        return row | self._pitch_of(record, start, count)

    def _pitch_of(self, record: dict[str, Any], start: int, count: int) -> pipeline.Batch:
        return pitch_fields(record["f0"], start, count) if self._pitch else {}

    def _utterance(self, audio: Samples, record: dict[str, Any], rng: np.random.Generator) -> pipeline.Batch:
        audio = audio[: self._segment]  # `duration` is rounded
        padded = cut(audio, 0, self._segment)
        return {
            "wave": padded,
            "input_values": normalize_window(padded, np.arange(self._segment) < len(audio)),
            "lengths": np.asarray(len(audio), np.int32),
            "reference": random_reference(audio, 0, self._segment, self._config.ref_segment_samples, rng),
        } | self._pitch_of(record, 0, self._segment // self._config.latent_hop_length)

    def _segment_of(self, audio: Samples, record: dict[str, Any], rng: np.random.Generator) -> pipeline.Batch:
        segment, context, hop = self._segment, self._context, self._config.latent_hop_length
        start = int(rng.integers(max(len(audio) - segment, 0) + 1))
        if self._pitch:
            start -= start % hop
        window = cut(audio, start - context, segment + 2 * context)
        values = normalize_window(window, cut(np.ones_like(audio), start - context, len(window)) > 0)
        reference = random_reference(audio, start, segment, self._config.ref_segment_samples, rng)
        row = {"wave": window[context : context + segment], "input_values": values, "reference": reference}
        return row | self._pitch_of(record, start // hop, segment // hop)


def whole_tokens(name: str, seconds: float, config: SparkConfig) -> int:
    """Returns the samples of `seconds`.

    Raises:
      SparkError: they are no whole tokens, so that features and samples would not meet.
    """
    samples = round(seconds * config.sample_rate)
    hop = config.latent_hop_length
    if samples % hop or samples <= 0:
        raise SparkError(f"{name}: {seconds} s are {samples} samples, expected a positive multiple of {hop}")
    return samples


def cut(audio: Samples, start: int, length: int) -> Samples:
    """Returns `length` samples from `start` on, zeros outside of the signal."""
    inside = audio[max(start, 0) : max(start + length, 0)]
    before = min(max(-start, 0), length)
    return np.pad(inside, (before, length - before - len(inside)))


def normalize_window(window: Samples, inside: np.ndarray) -> Samples:
    """Normalizes to zero mean and unit variance over the utterance; samples beyond its ends stay zero.

    Statistics over the zeros too would depend on how much silence a window happens to catch, which whole
    utterances at inference never do.
    """
    mean, variance = np.mean(window, where=inside), np.var(window, where=inside)
    return np.where(inside, (window - mean) / np.sqrt(variance + 1e-7), 0.0).astype(np.float32)


def random_reference(audio: Samples, start: int, segment: int, length: int, rng: np.random.Generator) -> Samples:
    """Returns a random crop of `length` samples; shorter audio is repeated.

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
