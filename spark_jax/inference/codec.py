"""The speech codec: lists of recordings to tokens and lists of tokens to speech, in few compiled programs.

    codec = Codec.load()
    [(global_ids, semantic_ids), ...] = codec.encode([samples, ...])
    [samples, ...] = codec.decode([(global_ids, semantic_ids), ...])

Items are sorted into the lengths of `buckets`, padded, masked and computed in batches; results come in the order of the
items. What an item gives does not depend on the others: ids are equal, waveforms but for rounding (1e-5).
"""

import functools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from spark_jax.audio.containers import SoundBytes, SoundSource
from spark_jax.audio.load import check_reference, load_audio
from spark_jax.audio.reference import load_reference, warn_without_voice
from spark_jax.config import SparkConfig
from spark_jax.dataclass_reader import plain_number
from spark_jax.errors import SparkError
from spark_jax.inference import buckets, placement, speech_tokens
from spark_jax.inference.buckets import Batch
from spark_jax.inference.checks import check_transcript
from spark_jax.inference.parts import Utterance
from spark_jax.inference.speech_tokens import PaddedSpeech
from spark_jax.inference.windows import Window, windows
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.voice import Voice, check_ids
from spark_jax.sharding import batch_sharding, under_mesh
from spark_jax.shared import compilation_cache
from spark_jax.text.reading import check_text
from spark_jax.wav2vec2.model import num_frames, num_samples

EMBEDDED_VOICE = Path(__file__).parents[1] / "voices" / "tiny-en"
CODEC_PARTS = ("bicodec", "wav2vec2")
BATCH_LENGTH = 2048  # padded frames or tokens of a batch on one device: 41 s of speech at the release's rate

T = TypeVar("T")
TokenIds = tuple[Int[np.ndarray, " global"], Int[np.ndarray, "_"]]


class Codec:
    """A loaded codec: wav2vec2 and BiCodec.

    Attributes:
      config: the model's sizes.
      variables: the loaded parts, as they lie on the devices.
      mesh: the devices.
      batch_length: padded frames or tokens of a batch on one device.
    """

    def __init__(
        self,
        config: SparkConfig,
        variables: Mapping[str, Any],
        *,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        batch_length: int | np.integer = BATCH_LENGTH,
    ):
        """Args:
        config, variables: of a `model_directory.LoadedModel`; parts that are not the codec's are left alone.
        dtype, mesh: see `load`.
        batch_length: see the class.
        """
        self.config = config
        self.mesh = placement.mesh_or_device(mesh)
        own = {part: variables[part] for part in CODEC_PARTS if part in variables}
        self.variables = {**variables, **placement.place(own, config, self.mesh)}
        self.batch_length = plain_number(batch_length)
        self._dtype = dtype

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str] | None = None,
        *,
        base: str | os.PathLike[str] | None = None,
        parts: Sequence[str] = CODEC_PARTS,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
    ) -> "Codec":
        """Loads the codec of a model; None: the embedded voice's. Turns the persistent compilation cache on.

        Args:
          directory: a model directory or a run.
          base: where the parts come from that `directory` lacks.
          parts: what is loaded. `decode`, and `voice` without a transcript, need only "bicodec".
          dtype: of the vocoder's convolutions. `encode` is always in float32, so that ids stay what they are.
          mesh: devices of this process, which divide batches over its axes data and fsdp, and parameters by the table
            of `spark_jax.sharding`; None: the default device.

        Raises:
          SparkError: something is wrong with the directory, or the mesh does not divide the model; see
            `model_directory.load`.
        """
        compilation_cache.enable()
        mesh = placement.mesh_or_device(mesh)
        directory = EMBEDDED_VOICE if directory is None else directory
        model = model_directory.load(directory, parts=parts, base=base, mesh=mesh)
        return cls(model.config, model.variables, dtype=dtype, mesh=mesh)

    def encode(self, samples: Sequence[np.ndarray], names: Sequence[str] | None = None) -> list[TokenIds]:
        """Returns global ids and semantic ids (int32) of each recording, as the reference computes them.

        There is one semantic id per whole frame of the feature extractor: (n - 400)//320 + 1 for n samples at the
        release's sizes. The last 80 to 399 samples make no token of their own.

        A recording longer than the model's longest speech (60 s; in full, its bucket of 3,072 tokens) is encoded in
        windows of that length, see `windows`. The reference takes all in one pass, at a cost that grows with the
        square of the length; each id depends on all that is heard in a pass, so those of longer recordings are others.

        Args:
          samples: recordings at the model's sample rate, one channel, of any loudness: the volume is normalized.
          names: what errors call them; None: by their number.

        Raises:
          SparkError: one that is not one-dimensional floats, shorter than 0.1 s, silent or not finite.
        """
        names = [f"samples[{i}]" for i in range(len(samples))] if names is None else names
        recordings = [self._checked(item, name) for item, name in zip(samples, names, strict=True)]
        parts = [windows(speech_tokens.num_tokens(len(item), self.config), self._longest) for item in recordings]
        spans = [(item, span) for item, own in enumerate(parts) for span in self._spans(own, len(recordings[item]))]

        @functools.lru_cache(maxsize=1)  # the windows of a recording come one after the other
        def prepared(item: int) -> speech_tokens.Utterance:
            return speech_tokens.prepare(recordings[item], self.config)

        def cut(item: int, span: range) -> speech_tokens.Utterance:
            return speech_tokens.Utterance(prepared(item).samples[span.start : span.stop], prepared(item).clip)

        plan = self.plan([num_frames(len(span), self.config.wav2vec2) for _, span in spans])
        padded = (self.pad([cut(*spans[number]) for number in batch.items], batch) for batch in plan)
        found = iter(_in_order(plan, self.encode_padded(padded)))
        return [_join(own, [next(found) for _ in own]) for own in parts]

    def encode_files(self, paths: Sequence[str | os.PathLike[str]]) -> list[TokenIds]:
        """Returns what `encode` does, of audio files of any sample rate; see `audio.load.load_audio`.

        Raises:
          SparkError: a file that is missing or no audio, or as `encode`.
        """
        return self.encode([load_audio(path, self.config.sample_rate) for path in paths], [*map(os.fspath, paths)])

    def decode(
        self, ids: Sequence[tuple[Any, Any]], names: Sequence[str | None] | None = None
    ) -> list[Float[np.ndarray, "_"]]:
        """Returns float32 samples of each pair of global and semantic ids: `latent_hop_length` (320) a semantic id.

        Args:
          ids: of each item, in the form that `encode` gives.
          names: what errors call them; None: by their number.

        Raises:
          SparkError: ids that do not fit the model; see `voice.check_ids`.
        """
        names = [f"ids[{i}]" for i in range(len(ids))] if names is None else names
        checked = [check_ids(*item, self.config, name) for item, name in zip(ids, names, strict=True)]
        longest = buckets.bucket(self.config.max_semantic_tokens)
        items = [item for item in checked if len(item[1]) <= longest]
        plan = self.plan([len(said) for _, said in items])
        results = ((batch, self.vocode([items[number] for number in batch.items], batch)) for batch in plan)
        hop = self.config.latent_hop_length
        waves = (
            [
                np.array(row[: len(items[number][1]) * hop])
                for number, row in zip(batch.items, np.asarray(wave), strict=False)
            ]
            for batch, wave in _one_ahead(results)
        )
        found = iter(_in_order(plan, waves))
        return [next(found) if len(item[1]) <= longest else self._decode_long(*item, longest) for item in checked]

    def _decode_long(
        self, global_ids: Int[np.ndarray, " global"], semantic_ids: Int[np.ndarray, " tokens"], longest: int
    ) -> Float[np.ndarray, " time"]:
        """Returns speech that is computed in parts of so many tokens, one after the other; it is that of the whole."""
        context, waves, phase = speech_tokens.part_context(self.config), [], np.zeros(self._shards, np.uint32)
        utterance = Utterance((longest,), context.after)
        utterance.extend(semantic_ids)
        utterance.end()
        while (part := utterance.next_part()) is not None:
            ids, known = utterance.window(part, context.before, context.after)
            rows = {"semantic_ids": ids, "global_ids": global_ids, "mask": known}
            rows |= {"place": np.int32(part.first), "advance": np.int32(part.advance)}
            rows = {name: np.stack([row] * self._shards) for name, row in rows.items()}  # devices compute the same
            wave, phase = map(np.asarray, self.vocode_part(**rows, phase=phase))
            waves.append(wave[0, : part.advance * self.config.latent_hop_length])
            utterance.take(part)
        return np.concatenate(waves)

    def voice(self, path: SoundSource, transcript: str | None = None) -> Voice:
        """Returns the voice of a recording: its speaker's tokens, and its speech's where its transcript is given.

        Without a transcript nothing but the reference clip (the first seconds) is encoded, and at most 30 s are read.
        Any sample rate and any format that `audio.containers` opens. Long silence at the start is skipped, and of
        several channels the one that speaks counts: see `audio.reference.load_reference`.

        Warns:
          UserWarning: another channel than the first was taken, no voice is heard in the recording, or it is much
            shorter or longer than its transcript.

        Raises:
          SparkError: the file is missing, not audio, shorter than 0.1 s, silent or not finite; or it comes with a
            transcript that says nothing, and is longer than 30 s.
        """
        name = str(path) if isinstance(path, SoundBytes) else os.fspath(path)
        if transcript is not None:
            check_text("transcript", transcript, "what the reference says")
        samples = load_reference(path, self.config.sample_rate, spoken=transcript is not None)
        samples = self._checked(samples, name)
        warn_without_voice(samples, name, self.config.sample_rate)
        if transcript is not None:
            if fault := check_transcript(transcript, samples, self.config.sample_rate):
                warnings.warn(f"{name}: {fault}; does it say what its transcript says?", stacklevel=2)
            [(global_ids, semantic_ids)] = self.encode([samples], [name])
            return Voice(global_ids, semantic_ids, transcript)
        clips = np.zeros((self._shards, self.config.ref_segment_samples), np.float32)
        clips[0] = speech_tokens.prepare(samples, self.config).clip
        global_ids = self._tokenize_speakers(self.variables["bicodec"], clips)
        return Voice(np.asarray(global_ids[0]), np.zeros(0, np.int32))

    def plan(self, lengths: Sequence[int], full: bool = False) -> list[Batch]:
        """Returns the batches of items of these lengths, in wav2vec2 frames or tokens; see `buckets.batches`."""
        return buckets.batches(lengths, self.batch_length, self._shards, full)

    def pad(self, utterances: Sequence[speech_tokens.Utterance], batch: Batch) -> PaddedSpeech:
        """Returns the arrays of a planned batch for `encode_padded`."""
        return speech_tokens.pad_speech(utterances, batch.length, batch.rows, self.config)

    def encode_padded(self, batches: Iterable[PaddedSpeech]) -> Iterator[list[TokenIds]]:
        """Yields the ids of each row of each batch of `pad`; the next batch is made while one is computed."""
        results = ((batch["lengths"], self._start_encoding(batch)) for batch in batches)
        for lengths, result in _one_ahead(results):
            global_ids, semantic_ids = jax.device_get(result)
            counts = speech_tokens.num_tokens(lengths, self.config)
            yield [(own, said[:count]) for own, said, count in zip(global_ids, semantic_ids, counts, strict=True)]

    def vocode(self, items: Sequence[TokenIds], batch: Batch) -> jax.Array:
        """Starts to compute the speech of a planned batch's items: [rows, samples], zeros after each item's end."""
        semantic_ids = np.zeros((batch.rows, batch.length), np.int32)
        global_ids = np.zeros((batch.rows, self.config.bicodec.speaker_encoder.token_num), np.int32)
        mask = np.zeros((batch.rows, batch.length), bool)
        for row, (speaker, said) in enumerate(items):
            semantic_ids[row, : len(said)] = said
            global_ids[row] = speaker
            mask[row, : len(said)] = True
        return self._detokenize(self.variables["bicodec"], semantic_ids, global_ids, mask)

    def vocode_part(self, **arrays: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Starts to compute parts of speech and their next phases; see `speech_tokens.detokenize_part`."""
        names = ("semantic_ids", "global_ids", "mask", "phase", "place", "advance")
        return self._detokenize_part(self.variables["bicodec"], *(arrays[name] for name in names))

    @functools.cached_property
    def _ratio(self) -> int:
        """Frames of the feature extractor in a token."""
        return math.prod(self.config.bicodec.encoder.sample_ratios)

    @property
    def _longest(self) -> int:
        """Tokens that are encoded in one pass: as many as the padded length of the model's longest speech holds."""
        return buckets.bucket(self.config.max_semantic_tokens * self._ratio) // self._ratio

    def _spans(self, parts: Sequence[Window], samples: int) -> list[range]:
        """Returns the samples of each window of a recording; all of them where there is one."""
        if len(parts) == 1:
            return [range(samples)]
        starts = [part.start * self.config.latent_hop_length for part in parts]
        length = num_samples(parts[0].length * self._ratio, self.config.wav2vec2)
        return [range(start, min(start + length, samples)) for start in starts]

    def _start_encoding(self, batch: PaddedSpeech) -> tuple[jax.Array, jax.Array]:
        arrays = (batch[name] for name in ("samples", "lengths", "clips"))
        return self._tokenize(self.variables["wav2vec2"], self.variables["bicodec"], *arrays)

    def _checked(self, samples: np.ndarray, name: str) -> Float[np.ndarray, " time"]:
        samples = np.asarray(samples)
        if not np.issubdtype(samples.dtype, np.floating):
            raise SparkError(f"{name}: type {samples.dtype}, expected floating-point amplitudes in -1 to 1")
        check_reference(samples, name, self.config.sample_rate)
        return samples

    @property
    def _shards(self) -> int:
        return placement.row_shards(self.mesh)

    @functools.cached_property
    def _tokenize(self) -> Callable[..., Any]:
        return self._compile(speech_tokens.tokenize, ("wav2vec2", "bicodec"), 3)

    @functools.cached_property
    def _tokenize_speakers(self) -> Callable[..., Any]:
        return self._compile(speech_tokens.tokenize_speakers, ("bicodec",), 1)

    @functools.cached_property
    def _detokenize(self) -> Callable[..., Any]:
        return self._compile(partial(speech_tokens.detokenize, dtype=self._dtype), ("bicodec",), 3)

    @functools.cached_property
    def _detokenize_part(self) -> Callable[..., Any]:
        return self._compile(partial(speech_tokens.detokenize_part, dtype=self._dtype), ("bicodec",), 6)

    def _compile(self, function: Callable[..., Any], parts: tuple[str, ...], arrays: int) -> Callable[..., Any]:
        """Returns a compiled function of parts of the model and of arrays, whose rows, as its results', are divided."""
        placement.require(self.variables, *parts)
        rows = batch_sharding(self.mesh)
        where = [placement.shardings_of(self.variables[part]) for part in parts]
        return jax.jit(
            under_mesh(partial(function, config=self.config), self.mesh),
            in_shardings=(*where, *[rows] * arrays),
            out_shardings=rows,
        )


def _join(parts: Sequence[Window], ids: Sequence[TokenIds]) -> TokenIds:
    """Returns the ids of a recording, of those of its windows; each has those of the speaker."""
    said = [own[part.first : part.stop] for part, (_, own) in zip(parts, ids, strict=True)]
    return ids[0][0], np.concatenate(said)


def _in_order(plan: Sequence[Batch], results: Iterable[Sequence[T]]) -> list[T]:
    """Returns the results of batches as a list in the order of the items."""
    found: dict[int, T] = {}
    for batch, rows in zip(plan, results, strict=True):
        found.update(zip(batch.items, rows, strict=False))  # rows without an item come last
    return [found[item] for item in range(len(found))]


def _one_ahead(results: Iterable[T]) -> Iterator[T]:
    """Yields what another iterator does, which is always one step ahead: devices work on the next batch meanwhile."""
    waiting: list[T] = []
    for result in results:
        waiting.append(result)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting
