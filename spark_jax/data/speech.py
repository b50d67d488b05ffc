"""Speech recognition examples: audio and the characters of a transcript, in buckets of duration."""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spark_jax.data import manifest, pipeline
from spark_jax.errors import SparkError

FRAME_SECONDS = 0.02  # from one wav2vec2 frame to the next
FIELD_SECONDS = 0.025  # what one frame sees


class Vocabulary:
    """Characters as CTC labels 1, 2, …; 0 is the blank."""

    def __init__(self, symbols: Sequence[str]):
        self.symbols = list(symbols)
        self._ids = {symbol: i + 1 for i, symbol in enumerate(self.symbols)}

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Vocabulary":
        """All characters that occur, in code point order."""
        return cls(sorted(set().union(*map(set, texts))))

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise SparkError(f"{path}: cannot be read as a vocabulary ({error})") from error

    def save(self, path: str | Path) -> None:
        temporary = Path(path).with_suffix(".tmp")
        temporary.write_text(json.dumps(self.symbols, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)

    def __len__(self) -> int:
        """Labels with the blank."""
        return len(self.symbols) + 1

    def encode(self, text: str) -> list[int]:
        """Labels of the characters; characters outside of the vocabulary are left out."""
        return [self._ids[symbol] for symbol in text if symbol in self._ids]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.symbols[i - 1] for i in ids)


class SpeechExamples:
    """Utterances of one split, sorted into buckets; makes padded batches of them.

    Args:
      records: from `manifest.read_corpus`.
      target: the field whose characters are the labels.
      vocabulary: the labels.
      bucket_seconds: rising upper limits of duration; longer utterances are dropped and counted in `dropped`.
      batch_seconds: padded audio in a batch.
      sample_rate: of the audio.
      frames: number of frames for a number of samples; given, batches carry the frames' labels, `path`, from
        the records' `phoneme_bounds` (needs target "phonemes").
      row_multiple: rows of each batch are a multiple of this (devices that share it).
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        target: str,
        vocabulary: Vocabulary,
        bucket_seconds: Sequence[float],
        batch_seconds: float,
        sample_rate: int,
        row_multiple: int = 1,
        frames: Callable[[int], int] | None = None,
    ):
        self._frames = frames
        self._records, self._sample_rate = records, sample_rate
        self._labels = [vocabulary.encode(record[target]) for record in records]
        limits = np.asarray(bucket_seconds)
        durations = np.array([record["duration"] for record in records])
        self.buckets = np.searchsorted(limits, durations)
        # A CTC label needs a frame of 20 ms, and one more between equal neighbors.
        fits = np.array(
            [
                len(labels) + sum(a == b for a, b in itertools.pairwise(labels)) < duration * 49
                for labels, duration in zip(self._labels, durations, strict=True)
            ]
        )
        self.buckets[(self.buckets == len(limits)) | ~fits] = -1
        self.dropped = int(np.sum(self.buckets < 0))
        self._samples = [round(limit * sample_rate) for limit in bucket_seconds]
        rows = [int(batch_seconds / limit) // row_multiple * row_multiple for limit in bucket_seconds]
        self.batch_sizes = [max(row_multiple, count) for count in rows]
        lengths = np.array([len(labels) for labels in self._labels])
        self._target_lengths = [
            -(-int(lengths[self.buckets == bucket].max(initial=1)) // 16) * 16 for bucket in range(len(limits))
        ]

    def plan(self, seed: int | None) -> pipeline.Plan:
        """`bucketed_plan`; an example index of the plan is a pair, (example, bucket): a process whose rows of a batch
        are all empty makes them in the shape of the others'."""
        plan = pipeline.bucketed_plan(self.buckets, self.batch_sizes, seed)

        def pairs(epoch: int) -> list[np.ndarray]:
            batches = plan(epoch)
            return [np.stack([rows, np.full(len(rows), self.buckets[rows.max()])], axis=1) for rows in batches]

        return pairs

    def load(self, rows: np.ndarray, rngs: Sequence[np.random.Generator]) -> pipeline.Batch:
        """`samples` [rows, samples], `lengths`, `targets` [rows, labels], `target_lengths`; empty rows have
        length 0. All rows share a bucket."""
        indices, bucket = rows[:, 0], rows[0, 1]
        samples = np.zeros((len(indices), self._samples[bucket]), np.float32)
        targets = np.zeros((len(indices), self._target_lengths[bucket]), np.int32)
        lengths, target_lengths = np.zeros((2, len(indices)), np.int32)
        path = None
        if self._frames is not None:
            path = np.full((len(indices), self._frames(samples.shape[1])), -1, np.int32)
        for row, index in enumerate(indices):
            if index < 0:
                continue
            audio = manifest.read_audio(self._records[index]["wav_path"], self._sample_rate)
            audio = audio[: samples.shape[1]]
            labels = self._labels[index]
            samples[row, : len(audio)], lengths[row] = audio, len(audio)
            targets[row, : len(labels)], target_lengths[row] = labels, len(labels)
            if path is not None:
                count = self._frames(len(audio))
                path[row, :count] = frame_labels(self._records[index]["phoneme_bounds"], labels, count)
        batch = {"samples": samples, "lengths": lengths, "targets": targets, "target_lengths": target_lengths}
        return batch if path is None else batch | {"path": path}


def frame_labels(bounds: Sequence[float], labels: Sequence[int], frames: int) -> np.ndarray:
    """The label that is spoken at the middle of each frame; blank before the first and after the last one.

    Args:
      bounds: seconds; label i lasts from bound i to bound i + 1.
    """
    middles = np.arange(frames) * FRAME_SECONDS + FIELD_SECONDS / 2
    inside = np.searchsorted(np.asarray(bounds), middles, side="right")
    return np.asarray([0, *labels, 0], np.int32)[inside]
