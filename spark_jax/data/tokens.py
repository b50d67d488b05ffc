"""Token records → training sequences of the two tasks → packed rows of one fixed shape."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spark_jax.data import labels, pipeline
from spark_jax.data.speech import FRAME_SECONDS
from spark_jax.errors import SparkError
from spark_jax.prompt import TrainingSequence, controllable_tts_sequence, tts_sequence
from spark_jax.tokenizer import SparkTokenizer

RECORD_FIELDS = (
    "index", "split", "text", "gender", "language", "pitch", "speed", "global_ids", "semantic_ids",
)  # fmt: skip

# Classes of target tokens; the loss counts where the class is not NONE, and is also reported by class.
NONE, CONTROL, GLOBAL, SEMANTIC = range(4)
CLASS_NAMES = ("none", "control", "global", "semantic")


class TokenSequences:
    """All sequences of a split, as flat arrays, and the packed batches made of them.

    Args:
      records: of `tools/encode_corpus.py`, with `RECORD_FIELDS`.
      tokenizer: of the model.
      row_length: tokens of a row.
      max_length: longer sequences are dropped and counted in `dropped`; at most `row_length`.
      task_weights: sequences of each task, (tts, controllable_tts), for an utterance and epoch; of a fraction
        another part is drawn every epoch.
      fragment_weight: sequences of each of an utterance's `fragments`, for an utterance and epoch.
      fragment_words: most words of a fragment.
      semantic_noise: share of the semantic tokens that are replaced by random ones as inputs, not as targets. Speech
        tokens tell the next ones so well that a model learns to read the text late; noise makes them tell less.

    Raises:
      SparkError: no sequence is short enough.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        tokenizer: SparkTokenizer,
        row_length: int,
        max_length: int,
        task_weights: tuple[float, float] = (1.0, 1.0),
        fragment_weight: float = 0.0,
        fragment_words: int = 3,
        semantic_noise: float = 0.0,
    ):
        self._row_length, self._noise, self._semantic_ids = row_length, semantic_noise, tokenizer.semantic_ids
        classes = _class_table(tokenizer)
        ids, marks, self._weights, self.dropped = [], [], [], 0
        rng = np.random.default_rng(0)
        tts_weight, controllable_weight = task_weights
        for record in records:
            examples: list[tuple[Callable[..., TrainingSequence], dict[str, Any], float]] = [
                (_tts, record, tts_weight), (_controllable, record, controllable_weight)
            ]  # fmt: skip
            if fragment_weight > 0:
                examples += [(_tts, part, fragment_weight) for part in fragments(record, fragment_words, rng)]
            for make, source, weight in examples:
                if weight <= 0:
                    continue
                sequence = make(tokenizer, source)
                if len(sequence.ids) > min(max_length, row_length):
                    self.dropped += 1
                    continue
                ids.append(sequence.ids.astype(np.int32))
                marks.append(np.where(sequence.loss_mask, classes[sequence.ids], NONE).astype(np.int8))
                self._weights.append(weight)
        if not ids:
            raise SparkError(f"no sequence of {len(records)} utterances fits {min(max_length, row_length)} tokens")
        self.lengths = np.array([len(part) for part in ids])
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._ids, self._classes = np.concatenate(ids), np.concatenate(marks)

    def __len__(self) -> int:
        return len(self.lengths)

    def plan(self, rows: int, seed: int | None) -> pipeline.Plan:
        """Batches of `rows` packed rows; an example index of the plan is an array of sequences.

        What does not fill the last batch waits for another epoch; without a seed (evaluation: every sequence
        of positive weight once, in order) it is filled with empty rows.
        """
        weights = np.array(self._weights)

        def plan(epoch: int) -> list[np.ndarray]:
            if seed is None:
                order = np.arange(len(weights))
            else:
                rng = np.random.default_rng((seed, epoch))
                copies = np.floor(weights + rng.random(len(weights))).astype(int)
                order = rng.permutation(np.repeat(np.arange(len(weights)), copies))
            packed = pack(self.lengths, order, self._row_length)
            if seed is None or len(packed) < rows:
                packed += [np.zeros(0, int)] * (-len(packed) % rows)
            batches = np.empty(len(packed) // rows * rows, object)
            batches[:] = packed[: len(batches)]
            return list(batches.reshape(-1, rows))

        return plan

    def load(self, rows: np.ndarray, rng: np.random.Generator) -> pipeline.Batch:
        """Packed rows [rows, row_length]: `input_ids`, `targets` (the next token), `classes` of the targets,
        `positions` from 0 in each sequence, and `segment_ids` from 1, 0 on padding."""
        shape = (len(rows), self._row_length)
        batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "targets", "positions", "segment_ids")}
        batch["classes"] = np.zeros(shape, np.int8)
        for row, sequences in enumerate(rows):
            end = 0
            for segment, sequence in enumerate(sequences, 1):
                ids = self._ids[self._starts[sequence] : self._starts[sequence + 1]]
                marks = self._classes[self._starts[sequence] : self._starts[sequence + 1]]
                start, end = end, end + len(ids)
                batch["input_ids"][row, start:end] = self._noisy(ids, marks, rng) if self._noise else ids
                batch["targets"][row, start : end - 1] = ids[1:]
                batch["classes"][row, start : end - 1] = marks[1:]
                batch["positions"][row, start:end] = np.arange(len(ids))
                batch["segment_ids"][row, start:end] = segment
        return batch


    def _noisy(self, ids: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        replaced = (marks == SEMANTIC) & (rng.random(len(ids)) < self._noise)
        return np.where(replaced, rng.choice(self._semantic_ids, len(ids)), ids)


def fragments(record: dict[str, Any], max_words: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The utterance cut at word boundaries into records of one to `max_words` words each, in order.

    From short texts a small model learns early which letters sound how; reading along a sentence comes after. Needs
    the fields `phonemes` and `phoneme_bounds` of tools/align_corpus.py; utterances whose words and phonemes do not
    pair up give none.
    """
    words, spoken = record["text"].split(), record["phonemes"].split(" ")
    if len(words) != len(spoken) or len(words) < 2:
        return []
    starts = np.cumsum([0, *(len(word) + 1 for word in spoken)])  # characters before each word
    tokens_per_second = 1 / FRAME_SECONDS
    ids, cuts, parts = record["semantic_ids"], [0], []
    while cuts[-1] < len(words):
        cuts.append(min(cuts[-1] + int(rng.integers(1, max_words + 1)), len(words)))
    for first, last in zip(cuts, cuts[1:], strict=False):
        start, end = 0, len(ids)
        if first > 0:
            start = int(record["phoneme_bounds"][starts[first]] * tokens_per_second)
        if last < len(words):
            end = -int(-record["phoneme_bounds"][starts[last] - 1] * tokens_per_second // 1)
        if end > start:
            parts.append(record | {"text": " ".join(words[first:last]), "semantic_ids": ids[start:end]})
    return parts


def typical_utterance(records: Sequence[dict[str, Any]]) -> int:
    """The place of the record whose global ids are the commonest ones of all, position by position."""
    ids = np.array([record["global_ids"] for record in records])
    return int(np.argmax(sum(np.bincount(column)[column] for column in ids.T)))


def common_globals(records: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """The global ids of each voice's typical utterance, by the records' field `voice`.

    Raises:
      SparkError: a record without the field.
    """
    voices: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if "voice" not in record:
            raise SparkError(f"common_globals: utterance {record['index']} has no field voice")
        voices.setdefault(record["voice"], []).append(record)
    return {name: spoken[typical_utterance(spoken)]["global_ids"] for name, spoken in voices.items()}


def pack(lengths: np.ndarray, order: np.ndarray, row_length: int, window: int = 32) -> list[np.ndarray]:
    """First-fit packing in the given order: each sequence goes to the oldest open row with room for it.

    Args:
      lengths: tokens of each sequence, at most `row_length`.
      order: sequences to pack; one may occur twice.
      window: rows kept open; the fullest is closed when another is needed.

    Returns:
      The sequences of each row, in the order in which rows were closed.
    """
    closed: list[np.ndarray] = []
    rows: list[list[int]] = []
    room: list[int] = []
    for sequence in order.tolist():
        length = int(lengths[sequence])
        at = next((i for i, free in enumerate(room) if free >= length), None)
        if at is None:
            if len(rows) == window:
                fullest = min(range(window), key=room.__getitem__)
                closed.append(np.array(rows.pop(fullest)))
                room.pop(fullest)
            at = len(rows)
            rows.append([])
            room.append(row_length)
        rows[at].append(sequence)
        room[at] -= length
    return closed + [np.array(row) for row in rows]


def _tts(tokenizer: SparkTokenizer, record: dict[str, Any]) -> TrainingSequence:
    return tts_sequence(tokenizer, record["text"], record["global_ids"], record["semantic_ids"])


def _controllable(tokenizer: SparkTokenizer, record: dict[str, Any]) -> TrainingSequence:
    return controllable_tts_sequence(
        tokenizer,
        record["text"],
        labels.gender_id(record["gender"]),
        labels.pitch_level(record["pitch"], record["gender"]),
        labels.speed_level(record["speed"], record["language"]),
        labels.pitch_value(record["pitch"]),
        labels.speed_value(record["speed"]),
        record["global_ids"],
        record["semantic_ids"],
    )


def _class_table(tokenizer: SparkTokenizer) -> np.ndarray:
    """Class of every token id as a target."""
    classes = np.full(tokenizer.vocab_size, CONTROL, np.int8)
    classes[tokenizer.global_ids] = GLOBAL
    classes[tokenizer.semantic_ids] = SEMANTIC
    return classes
