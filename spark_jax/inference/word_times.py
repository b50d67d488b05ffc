"""When each word of a speech is heard: its text aligned with what the model's recognizer hears.

The recognizer is a part of the model; how words are written in its labels is told by its files, see
`text.vocabulary.Speller`. A word that cannot be written lies between its neighbors; where that is most of the words,
there are no times.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.inference import buckets, placement
from spark_jax.inference.audio import Audio
from spark_jax.inference.long_text import Span, SpokenWord
from spark_jax.inference.stream import AudioChunk
from spark_jax.model_directory.parameters import recognizer_labels
from spark_jax.sharding import under_mesh
from spark_jax.text.vocabulary import VOCABULARY, Speller
from spark_jax.text.words import split_words
from spark_jax.wav2vec2.alignment import align_words
from spark_jax.wav2vec2.ctc import Wav2Vec2ForCTC
from spark_jax.wav2vec2.model import normalize_input, num_frames, num_samples

_WRITTEN = 0.5  # the least share of words that can be written in labels


class WordAligner:
    """A recognizer that finds words of which it is told."""

    def __init__(self, config: SparkConfig, variables: Any, speller: Speller, mesh: Mesh):
        """Args:
        config: the model's sizes.
        variables: of its recognizer.
        speller: writes words in the recognizer's labels.
        mesh: the devices that the variables lie on.

        Raises:
          SparkError: the speller's labels are not those of the recognizer.
        """
        if (labels := recognizer_labels(variables)) != len(speller.vocabulary):
            raise SparkError(
                f"{VOCABULARY} has {len(speller.vocabulary)} labels with the blank, the recognizer {labels}"
            )
        self._config, self._variables, self._speller = config, variables, speller
        self._rows = placement.row_shards(mesh)
        model = Wav2Vec2ForCTC(config.wav2vec2, len(speller.vocabulary))

        def scores(variables: Any, samples: Array, lengths: Array) -> Array:
            logits, _ = model.apply(variables, normalize_input(samples, lengths), lengths)
            return jax.nn.log_softmax(logits)

        self._scores = jax.jit(under_mesh(scores, mesh))

    def align(self, audio: Audio) -> Audio:
        """Returns a speech whose spans tell when each of their words is heard, as far as that can be found."""
        spans = (self.align_span(span, audio.samples[span.start : span.end]) for span in audio.spans)
        return dataclasses.replace(audio, spans=tuple(spans))

    def align_span(self, span: Span, samples: Float[np.ndarray, " time"]) -> Span:
        """Returns a span with its words.

        Args:
          span: of a speech.
          samples: its own.
        """
        return dataclasses.replace(span, words=self._words(span, samples))

    def _words(self, span: Span, samples: Float[np.ndarray, " time"]) -> tuple[SpokenWord, ...]:
        words = split_words(span.text)
        labels = [self._speller.labels(word.text) for word in words]
        frames = num_frames(len(samples), self._config.wav2vec2)
        if not frames or not words or sum(map(bool, labels)) < _WRITTEN * len(words):
            return ()
        # Unknown words that follow each other are looked for as one, which is then divided by letters.
        groups = [
            list(group)
            for _, group in itertools.groupby(range(len(words)), lambda place: place if labels[place] else -1)
        ]
        scores = np.asarray(self._scores(self._variables, *self._padded(samples)))[0, :frames]
        found = align_words(scores, [labels[group[0]] for group in groups], self._speller.pauses)
        if found is None:
            return ()
        spoken = []
        for group, (first, last) in zip(groups, found, strict=True):
            letters = np.cumsum([0, *(len(words[place].text) for place in group)])
            edges = self._sample(first + (last - first) * letters / letters[-1])
            edges = span.start + np.clip(np.round(edges), 0, len(samples)).astype(int)
            pairs = itertools.pairwise(edges.tolist())
            spoken += [SpokenWord(words[place].text, *pair) for place, pair in zip(group, pairs, strict=True)]
        return tuple(spoken)

    def _padded(
        self, samples: Float[np.ndarray, " time"]
    ) -> tuple[Float[np.ndarray, "rows padded"], Int[np.ndarray, " rows"]]:
        """Returns the samples in the first row of a batch of few lengths."""
        front_end = self._config.wav2vec2
        length = num_samples(buckets.bucket(num_frames(len(samples), front_end)), front_end)
        rows, lengths = np.zeros((self._rows, length), np.float32), np.full(self._rows, length, np.int32)
        rows[0, : len(samples)], lengths[0] = samples, len(samples)
        return rows, lengths

    def _sample(self, frames: Float[np.ndarray, " edges"]) -> Float[np.ndarray, " edges"]:
        """Returns from which sample on a frame is the nearest."""
        front_end = self._config.wav2vec2
        return frames * front_end.hop_length + (front_end.frame_length - front_end.hop_length) / 2


class StreamAligner:
    """Aligns the pieces of a stream when they have ended; it holds the samples of one piece.

    Attributes:
      spans: of the stream, with their words.
    """

    def __init__(self, aligner: WordAligner | None):
        """Args:
        aligner: finds the words; None: the spans stay as they are.
        """
        self.spans: list[Span] = []
        self._aligner, self._held, self._start = aligner, np.zeros(0, np.float32), 0

    def push(self, chunk: AudioChunk | None, spans: Sequence[Span]) -> None:
        """Takes what a stream gave.

        Args:
          chunk: its next samples; None: it has ended.
          spans: all of the stream's that were known when the chunk was there.
        """
        for span in spans[len(self.spans) :]:
            if self._aligner is not None:
                own = self._held[span.start - self._start : span.end - self._start]
                self._held, self._start = self._held[span.end - self._start :], span.end
                span = self._aligner.align_span(span, own)
            self.spans.append(span)
        if chunk is not None and self._aligner is not None:
            self._held = np.concatenate([self._held, chunk.samples])
