"""Speech recognition examples: audio and the characters of a transcript, in buckets of duration."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spark_jax.config import SparkConfig
from spark_jax.data import pipeline
from spark_jax.data.config import AudioDataConfig
from spark_jax.data.corpus_audio import UnusableAudioError, audio_lengths, read_audio
from spark_jax.data.pitch_tracks import PitchTracks
from spark_jax.errors import SparkError
from spark_jax.text.vocabulary import Vocabulary
from spark_jax.wav2vec2.model import num_frames

_TARGET_MULTIPLE = 16  # labels of a row: buckets of other corpora have the same shapes more often


def transcripts(records: Sequence[dict[str, Any]], target: str) -> list[str]:
    """Returns the texts of records, which the field `target` holds.

    Raises:
      SparkError: one is no text; its utterance is named.
    """
    for record in records:
        if not isinstance(record[target], str):
            index, found = record.get("index"), record[target]
            raise SparkError(f"utterance {index!r}: {target} is {found!r}, expected a text")
    return [record[target] for record in records]


class SpeechExamples:
    """Utterances of one split, sorted into buckets of duration; makes padded batches of them.

    Args:
      records: from `manifest.read_corpus`.
      target: the field whose characters are the labels.
      vocabulary: the labels.
      data: rising upper limits of duration, and padded audio in a batch.
      system: sample rate, and the front end that makes frames of samples.
      row_multiple: rows of each batch are a multiple of this (devices that share it).
      aligned: batches carry the frames' labels, `path`, from the records' `phoneme_bounds` (needs target "phonemes").
      tracks: batches carry the frames' pitch, `f0`, from these; None: they have none.

    Attributes:
      dropped: utterances that are longer than all buckets, or have more labels than frames; aligned also those with a
        character that the vocabulary lacks, since the times of the others would not be known.
      batch_sizes: rows of a batch of each bucket.
      target_lengths: labels of a row of each bucket.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        target: str,
        vocabulary: Vocabulary,
        data: AudioDataConfig,
        system: SparkConfig,
        row_multiple: int = 1,
        aligned: bool = False,
        tracks: PitchTracks | None = None,
    ):
        self._records, self._system, self._aligned, self._tracks = records, system, aligned, tracks
        self._labels = [vocabulary.encode(text) for text in transcripts(records, target)]
        limits = np.asarray(data.bucket_seconds)
        durations = _durations(records, system.sample_rate)
        self.buckets = np.searchsorted(limits, durations)
        # A CTC label needs a frame, and one more between equal neighbors. A second has one frame less than it has hops,
        # as the last frame needs samples beyond its hop.
        frames = durations * (system.sample_rate / system.wav2vec2.hop_length - 1)
        needed = [len(labels) + sum(a == b for a, b in itertools.pairwise(labels)) for labels in self._labels]
        self.buckets[(self.buckets == len(limits)) | (np.array(needed) >= frames)] = -1
        if aligned:
            texts = transcripts(records, target)
            unknown = [len(labels) != len(text) for labels, text in zip(self._labels, texts, strict=True)]
            self.buckets[np.array(unknown)] = -1
        self.dropped = int(np.sum(self.buckets < 0))
        self._samples = [round(limit * system.sample_rate) for limit in data.bucket_seconds]
        self.batch_sizes = [bucket_rows(limit, data.batch_seconds, row_multiple) for limit in data.bucket_seconds]
        lengths = np.array([len(labels) for labels in self._labels])
        self.target_lengths = [
            bucket_targets(int(lengths[self.buckets == bucket].max(initial=1))) for bucket in range(len(limits))
        ]

    def plan(self, seed: int | None) -> pipeline.Plan:
        """Returns a `bucketed_plan` whose example indices are pairs, (example, bucket): a process whose rows of a batch
        are all empty makes them in the shape of the others'."""
        plan = pipeline.bucketed_plan(self.buckets, self.batch_sizes, seed)

        def pairs(epoch: int) -> list[np.ndarray]:
            batches = plan(epoch)
            return [np.stack([rows, np.full(len(rows), self.buckets[rows.max()])], axis=1) for rows in batches]

        return pairs

    def load(self, rows: np.ndarray, rngs: Sequence[np.random.Generator]) -> pipeline.Batch:
        """Returns `samples` [rows, samples], `lengths`, `targets` [rows, labels] and `target_lengths`; aligned also
        `path` [rows, frames], −1 on padding; with tracks `f0` [rows, frames] in Hz, 0 on what is unvoiced and on
        padding. Empty rows have length 0. All rows share a bucket.

        Raises:
          SparkError: audio that cannot be read, or an utterance without a pitch track.
        """
        indices, bucket = rows[:, 0], rows[0, 1]
        samples = np.zeros((len(indices), self._samples[bucket]), np.float32)
        targets = np.zeros((len(indices), self.target_lengths[bucket]), np.int32)
        lengths, target_lengths = np.zeros((2, len(indices)), np.int32)
        path = np.full((len(indices), num_frames(samples.shape[1], self._system.wav2vec2)), -1, np.int32)
        f0 = np.zeros(path.shape, np.float32)
        for row, index in enumerate(indices):
            if index < 0:
                continue
            audio = read_audio(self._records[index]["wav_path"], self._system.sample_rate)
            audio = audio[: samples.shape[1]]  # resampling may give one sample more than the header tells
            labels = self._labels[index]
            samples[row, : len(audio)], lengths[row] = audio, len(audio)
            targets[row, : len(labels)], target_lengths[row] = labels, len(labels)
            if self._aligned:
                spoken = frame_labels(self._records[index]["phoneme_bounds"], labels, len(audio), self._system)
                path[row, : len(spoken)] = spoken
            if self._tracks is not None:
                track = self._tracks.read(self._records[index])[: f0.shape[1]]
                f0[row, : len(track)] = track
        batch = {"samples": samples, "lengths": lengths, "targets": targets, "target_lengths": target_lengths}
        batch |= {"path": path} if self._aligned else {}
        return batch | ({"f0": f0} if self._tracks is not None else {})


def _durations(records: Sequence[dict[str, Any]], sample_rate: int) -> Float[np.ndarray, " records"]:
    """Seconds of each file: what the metadata says may be rounded, or of another file."""
    lengths = audio_lengths([record["wav_path"] for record in records], sample_rate)
    for length in lengths:
        if isinstance(length, UnusableAudioError):
            raise length
    return np.array(lengths, np.float64) / sample_rate


def bucket_rows(bucket_seconds: float, batch_seconds: float, row_multiple: int) -> int:
    """Returns the rows of a batch of one bucket: as many as fit its audio, a positive multiple of `row_multiple`."""
    return max(row_multiple, int(batch_seconds / bucket_seconds) // row_multiple * row_multiple)


def bucket_targets(longest: int) -> int:
    """Returns the labels of a row, padding included, where the longest target of a bucket has so many."""
    return -(-longest // _TARGET_MULTIPLE) * _TARGET_MULTIPLE


def frame_labels(
    bounds: Sequence[float], labels: Sequence[int], samples: int, system: SparkConfig
) -> Int[np.ndarray, " frames"]:
    """Returns the label that is spoken at the middle of each frame; blank before the first and after the last one.

    Args:
      bounds: seconds; label i lasts from bound i to bound i + 1.
      samples: of the utterance.
      system: sample rate, and the front end that makes frames of samples.
    """
    front_end = system.wav2vec2
    starts = np.arange(num_frames(samples, front_end)) * (front_end.hop_length / system.sample_rate)
    middles = starts + front_end.frame_length / system.sample_rate / 2
    inside = np.searchsorted(np.asarray(bounds), middles, side="right")
    return np.asarray([0, *labels, 0], np.int32)[inside]
