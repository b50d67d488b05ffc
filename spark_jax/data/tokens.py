"""Training sequences of the two tasks → packed rows of one fixed shape.

Where sequences come from is `token_sources`; this module mixes, packs and noises them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int8

from spark_jax.data import packing, pipeline, sources
from spark_jax.errors import SparkError
from spark_jax.text import attributes
from spark_jax.text.prompt import TrainingSequence, controllable_tts_sequence, tts_sequence
from spark_jax.text.tokenizer import SparkTokenizer

# Classes of target tokens; the loss counts where the class is not NONE, and is also reported by class.
NONE, CONTROL, GLOBAL, SEMANTIC = range(4)
CLASS_NAMES = ("none", "control", "global", "semantic")

# Tasks of target tokens, likewise.
TTS, CONTROLLABLE_TTS = 1, 2
TASK_NAMES = ("none", "tts", "controllable_tts")


class Example(NamedTuple):
    """One sequence: its token ids, the class of each as a target (NONE in the prompt), and its task."""

    ids: Int[np.ndarray, " length"]
    classes: Int8[np.ndarray, " length"]
    task: int


@runtime_checkable
class TokenSource(Protocol):
    """Numbered sequences, of which lengths and weights are known without reading them.

    Attributes:
      dropped: what is left out.
    """

    dropped: sources.DropCounter

    def __len__(self) -> int: ...

    def lengths(self, numbers: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """Returns the number of tokens of each sequence."""

    def weights(self, start: int, stop: int) -> Float[np.ndarray, " some"]:
        """Returns how often each sequence of a range comes in an epoch; see `pipeline.weighted_order`."""

    def read(self, numbers: Int[np.ndarray, " some"]) -> Sequence[Example | None]:
        """Reads sequences; None stands for one that cannot be read and is skipped."""


class TokenSequences:
    """A mixture of sources, and the packed batches made of it.

    Args:
      parts: where the sequences come from.
      tokenizer: of the model.
      row_length: tokens of a row; no sequence is longer.
      semantic_noise: share of the semantic tokens that are replaced by random ones as inputs, not as targets. Speech
        tokens tell the next ones so well that a model learns to read the text late; noise makes them tell less.
    """

    def __init__(
        self, parts: Sequence[TokenSource], tokenizer: SparkTokenizer, row_length: int, semantic_noise: float = 0.0
    ):
        self._sources, self._row_length, self._noise = sources.Concatenated(parts), row_length, semantic_noise
        self._semantic_ids = tokenizer.semantic_ids

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def dropped(self) -> dict[str, int]:
        """What the sources leave out, by reason: utterances, or sequences where the reason begins with a task."""
        return sources.total([source.dropped.counts for source in self._sources.sources])

    def summary(self) -> dict[str, float | dict[str, int]]:
        """Returns the sequences and tokens that an epoch has on average, and what is dropped."""
        sequences = tokens = 0.0
        first = 0
        for weights in self._sources.weights():
            numbers = np.arange(first, first + len(weights))
            first += len(weights)
            sequences += float(weights.sum())
            tokens += float(weights @ self.lengths(numbers))
        return {"sequences": sequences, "tokens": tokens, "dropped": self.dropped}

    def lengths(self, numbers: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """Returns the number of tokens of each sequence."""
        lengths = np.zeros(len(numbers), np.int32)
        for source, positions, own in self._sources.parts(numbers):
            lengths[positions] = source.lengths(own)
        return lengths

    def plan(self, rows: int, seed: int | None) -> pipeline.Plan:
        """Plans batches of `rows` packed rows; an example index of the plan is an array of sequences.

        What does not fill the last batch waits for another epoch; without a seed (evaluation: every sequence
        of positive weight once, in order) it is filled with empty rows.
        """

        def plan(epoch: int) -> packing.PackedEpoch:
            key = None if seed is None else (seed, epoch)
            rng = None if key is None else np.random.default_rng(key)
            order = pipeline.weighted_order(self._sources.weights(), rng)
            return packing.PackedEpoch(order, self.lengths, self._row_length, rows, key)

        return plan

    def load(self, rows: np.ndarray, rngs: Sequence[np.random.Generator]) -> pipeline.Batch:
        """Returns packed rows [rows, row_length]: `input_ids`, `targets` (the next token), `classes` and `tasks` of the
        targets, `positions` from 0 in each sequence, and `segment_ids` from 1, 0 on padding."""
        shape = (len(rows), self._row_length)
        batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "targets", "positions", "segment_ids")}
        batch |= {name: np.zeros(shape, np.int8) for name in ("classes", "tasks")}
        examples = iter(self._read(np.concatenate(rows)))
        for row, (sequences, rng) in enumerate(zip(rows, rngs, strict=True)):
            end = 0
            for segment in range(1, len(sequences) + 1):
                example = next(examples)
                if example is None:
                    continue
                ids, classes, task = example
                start, end = end, end + len(ids)
                batch["input_ids"][row, start:end] = self._noisy(ids, classes, rng) if self._noise else ids
                batch["targets"][row, start : end - 1] = ids[1:]
                batch["classes"][row, start : end - 1] = classes[1:]
                batch["tasks"][row, start : end - 1] = np.where(classes[1:] != NONE, task, 0)
                batch["positions"][row, start:end] = np.arange(len(ids))
                batch["segment_ids"][row, start:end] = segment
        return batch

    def _read(self, numbers: Int[np.ndarray, " some"]) -> list[Example | None]:
        examples: list[Example | None] = [None] * len(numbers)
        for source, positions, own in self._sources.parts(numbers):
            for position, example in zip(positions.tolist(), source.read(own), strict=True):
                examples[position] = example
        return examples

    def _noisy(self, ids: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        replaced = (marks == SEMANTIC) & (rng.random(len(ids)) < self._noise)
        return np.where(replaced, rng.choice(self._semantic_ids, len(ids)), ids)


def make_example(tokenizer: SparkTokenizer, classes: Int8[np.ndarray, " vocab"], task: int, record: dict) -> Example:
    """Makes the sequence that a token record gives for a task.

    Args:
      classes: `class_table` of the tokenizer.
      record: of `spark-jax prepare encode`.

    Raises:
      SparkError: an empty text, a code out of range, labels that the task needs and the record has not.
    """
    sequence = (_tts if task == TTS else _controllable)(tokenizer, record)
    marks = np.where(sequence.loss_mask, classes[sequence.ids], NONE).astype(np.int8)
    return Example(sequence.ids.astype(np.int32), marks, task)


def class_table(tokenizer: SparkTokenizer) -> Int8[np.ndarray, " vocab"]:
    """Returns the class of every token id as a target."""
    classes = np.full(tokenizer.vocab_size, CONTROL, np.int8)
    classes[tokenizer.global_ids] = GLOBAL
    classes[tokenizer.semantic_ids] = SEMANTIC
    return classes


def typical_utterance(records: Sequence[dict[str, Any]]) -> int:
    """Returns the index of the record whose global ids are the commonest ones of all, position by position."""
    ids = np.array([record["global_ids"] for record in records])
    return int(np.argmax(sum(np.bincount(column)[column] for column in ids.T)))


def common_globals(records: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Returns the global ids of each voice's typical utterance, by the records' field `voice`.

    Raises:
      SparkError: a record without the field.
    """
    voices: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if "voice" not in record:
            raise SparkError(f"common_globals: utterance {record['index']} has no field voice")
        voices.setdefault(record["voice"], []).append(record)
    return {name: spoken[typical_utterance(spoken)]["global_ids"] for name, spoken in voices.items()}


def _tts(tokenizer: SparkTokenizer, record: dict[str, Any]) -> TrainingSequence:
    return tts_sequence(tokenizer, record["text"], record["global_ids"], record["semantic_ids"])


def _controllable(tokenizer: SparkTokenizer, record: dict[str, Any]) -> TrainingSequence:
    return controllable_tts_sequence(
        tokenizer,
        record["text"],
        attributes.gender_id(record["gender"]),
        attributes.pitch_level(record["pitch"], record["gender"]),
        attributes.speed_level(record["speed"], record["language"]),
        attributes.pitch_value(record["pitch"]),
        attributes.speed_value(record["speed"]),
        record["global_ids"],
        record["semantic_ids"],
    )
