"""Where training sequences come from: JSON Lines read into memory, or ArrayRecord shards read as they are needed."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spark_jax.data import manifest, sources, tokens
from spark_jax.data.config import Sources, TokenDataConfig
from spark_jax.data.records import RecordReader
from spark_jax.data.token_check import CodeSizes, check_ids, check_text
from spark_jax.errors import SparkError, one_line
from spark_jax.text import attributes
from spark_jax.text.tokenizer import SparkTokenizer

# Labels (gender, language, pitch, speed) may be missing: only examples of a made-up voice need them.
RECORD_FIELDS = ("index", "split", "text", "global_ids", "semantic_ids")

CHECKED_AT_START = 8  # records of a source that are read before a run begins


def read_sequences(
    source: Sources,
    tokenizer: SparkTokenizer,
    config: TokenDataConfig,
    split: str,
    training: bool,
    token_rate: float,
    global_tokens: int | None = None,
) -> tokens.TokenSequences:
    """Reads the mixture of a run.

    Args:
      source: a JSON Lines file, a folder of records, a pattern, or several with weights.
      split: of the records.
      training: with what only training has: fragments and noise.
      token_rate: semantic tokens a second.
      global_tokens: global ids that the model has an utterance; None: any number.

    Raises:
      SparkError: a source cannot be read or gives no sequence; fragments or common global ids of records.
    """
    parts: list[tokens.TokenSource] = []
    sizes = CodeSizes.of_tokenizer(tokenizer, global_tokens)
    for path, weight in ((part.path, part.weight) for part in sources.expand(source)):
        dropped = sources.DropCounter(config.on_error)
        weights = (config.tts_weight * weight, config.controllable_weight * weight)
        limit = min(config.max_length, config.row_length)
        if not Path(path).is_dir():
            records = manifest.read_jsonl(path, RECORD_FIELDS, split, dropped)
            if config.common_globals:
                records = with_common_globals(records, path, config, sizes)
            cut = Fragments(config.fragment_weight * weight if training else 0.0, config.fragment_words, token_rate)
            parts.append(MemoryTokens(records, tokenizer, limit, weights, cut, dropped, path, sizes))
        elif config.common_globals or config.fragment_weight > 0:
            setting = "common_globals" if config.common_globals else "fragment_weight"
            raise SparkError(f"{setting}: {path} is a folder of records, expected a JSON Lines file")
        else:
            reader = RecordReader(path, split, "tokens")
            parts.append(RecordTokens(reader, tokenizer, limit, weights, dropped, sizes))
    return tokens.TokenSequences(parts, tokenizer, config.row_length, config.semantic_noise if training else 0.0)


def with_common_globals(
    records: Sequence[dict[str, Any]], path: str, config: TokenDataConfig, sizes: CodeSizes
) -> list[dict[str, Any]]:
    """Gives the records of a file the global ids that are typical of their voice in its training split.

    Records whose own ids cannot be used have no part in that; they are told where the file is read.
    """
    dropped = sources.DropCounter("skip")  # the records' own reading tells them
    usable = []
    for record in manifest.read_jsonl(path, RECORD_FIELDS, config.train_split, dropped):
        with contextlib.suppress(SparkError):
            check_ids(record, sizes)
            usable.append(record)
    voices = tokens.common_globals(usable)
    return [record | {"global_ids": voices.get(record.get("voice"), record["global_ids"])} for record in records]


@dataclasses.dataclass(frozen=True)
class Fragments:
    """Pieces of utterances as sequences of their own, see `fragments`.

    Attributes:
      weight: sequences of each piece for an utterance and epoch.
      words: most words of a piece.
      token_rate: semantic tokens a second.
    """

    weight: float
    words: int
    token_rate: float


class MemoryTokens:
    """The sequences of token records, as flat arrays.

    Args:
      records: of `spark-jax prepare encode`, with `RECORD_FIELDS`.
      tokenizer: of the model.
      limit: most tokens of a sequence.
      task_weights: sequences of each task, (tts, controllable_tts), for an utterance and epoch.
      cut: pieces of the utterances that are sequences, too; None: there are none.
      dropped: counts what is left out, and says what becomes of a record that cannot be used.
      name: of the file, for messages.
      sizes: what its ids must follow; None: those that the tokenizer has tokens for.

    Raises:
      SparkError: no sequence is left.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        tokenizer: SparkTokenizer,
        limit: int,
        task_weights: tuple[float, float] = (1.0, 1.0),
        cut: Fragments | None = None,
        dropped: sources.DropCounter | None = None,
        name: str = "records",
        sizes: CodeSizes | None = None,
    ):
        self.dropped = sources.DropCounter() if dropped is None else dropped
        classes = tokens.class_table(tokenizer)
        sizes = CodeSizes.of_tokenizer(tokenizer) if sizes is None else sizes
        weights, examples = [], []
        rng = np.random.default_rng(0)
        for record in records:
            if reason := utterance_fault(record):
                self.dropped.add(reason)
                continue
            wanted = [(task, record, weight) for task, weight in zip(_TASKS, task_weights, strict=True)]
            try:
                check_text(record)
                check_ids(record, sizes)
                if cut is not None and cut.weight > 0:
                    pieces = fragments(record, cut.words, cut.token_rate, rng)
                    wanted += [(tokens.TTS, piece, cut.weight) for piece in pieces]
                made = []
                for task, source, weight in wanted:
                    if weight <= 0:
                        continue
                    if task == tokens.CONTROLLABLE_TTS and (reason := controllable_fault(source)):
                        self.dropped.add(f"{tokens.TASK_NAMES[task]}: {reason}")
                        continue
                    example = tokens.make_example(tokenizer, classes, task, source)
                    if len(example.ids) > limit:
                        self.dropped.add(f"{tokens.TASK_NAMES[task]}: too long")
                        continue
                    made.append((example, weight))
            except (SparkError, KeyError, TypeError, ValueError) as error:
                reason = f"{name}: utterance {record['index']}: {_reason(error)}"
                self.dropped.fault("unusable", SparkError(reason))
                continue
            examples += [example for example, _ in made]
            weights += [weight for _, weight in made]
        if not examples:
            raise SparkError(
                f"{name}: no sequence of {len(records)} utterances fits {limit} tokens; "
                f"{sources.describe(self.dropped.counts)}"
            )
        self._lengths = np.array([len(example.ids) for example in examples], np.int32)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)])
        self._weights = np.array(weights)
        self._tasks = np.array([example.task for example in examples], np.int8)
        self._ids = np.concatenate([example.ids for example in examples])
        self._classes = np.concatenate([example.classes for example in examples])

    def __len__(self) -> int:
        return len(self._lengths)

    def lengths(self, numbers: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """Returns how many tokens some examples have."""
        return self._lengths[numbers]

    def weights(self, start: int, stop: int) -> Float[np.ndarray, " some"]:
        """Returns the weights of some examples."""
        return self._weights[start:stop]

    def read(self, numbers: Int[np.ndarray, " some"]) -> list[tokens.Example]:
        """Returns some examples."""
        spans = [slice(self._starts[number], self._starts[number + 1]) for number in numbers]
        return [
            tokens.Example(self._ids[span], self._classes[span], int(self._tasks[number]))
            for span, number in zip(spans, numbers, strict=True)
        ]


class RecordTokens:
    """The sequences of sharded token records (`records`); memory holds 3 bytes an utterance.

    Every record has a number for each task; what is left out has weight 0. Otherwise the order is that of
    `MemoryTokens`, and so are the batches.

    Args:
      reader: of token records.
      tokenizer: of the model, and the one that the records were counted with.
      limit: most tokens of a sequence.
      task_weights: sequences of each task, (tts, controllable_tts), for an utterance and epoch.
      dropped: counts what is left out, and says what becomes of a record that cannot be read.
      sizes: what its ids must follow; None: those that the tokenizer has tokens for.

    Raises:
      SparkError: no sequence is left; one of the records looked at cannot be read, or was counted with another
        tokenizer.
    """

    def __init__(
        self,
        reader: RecordReader,
        tokenizer: SparkTokenizer,
        limit: int,
        task_weights: tuple[float, float] = (1.0, 1.0),
        dropped: sources.DropCounter | None = None,
        sizes: CodeSizes | None = None,
    ):
        self.dropped = sources.DropCounter() if dropped is None else dropped
        self._sizes = CodeSizes.of_tokenizer(tokenizer) if sizes is None else sizes
        self._reader, self._tokenizer, self._limit = reader, tokenizer, limit
        self._classes = tokens.class_table(tokenizer)
        self._tasks = [(task, weight) for task, weight in zip(_TASKS, task_weights, strict=True) if weight > 0]
        self._extra = {task: control_tokens(tokenizer, task) for task, _ in self._tasks}
        for reason, count in reader.fields["dropped"].items():
            self.dropped.add(reason, count)
        self._count_dropped()
        if not any(weights.any() for weights in sources.Concatenated([self]).weights()):
            raise SparkError(
                f"{reader.folder}: no sequence of {len(reader)} utterances fits {limit} tokens; "
                f"{sources.describe(self.dropped.counts)}"
            )
        some = np.unique(np.linspace(0, len(self) - 1, CHECKED_AT_START).astype(np.int64))
        self.read(np.array([number for number in some.tolist() if self.weights(number, number + 1)[0] > 0], np.int64))

    def __len__(self) -> int:
        return len(self._reader) * len(self._tasks)

    def lengths(self, numbers: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """Returns how many tokens some examples have."""
        record, which = np.divmod(numbers, len(self._tasks))
        extra = np.array([self._extra[task] for task, _ in self._tasks], np.int32)
        return self._reader.columns["tokens"][record] + extra[which]

    def weights(self, start: int, stop: int) -> Float[np.ndarray, " some"]:
        """Returns the weights of some examples."""
        numbers = np.arange(start, stop)
        record, which = np.divmod(numbers, len(self._tasks))
        task = np.array([task for task, _ in self._tasks])[which]
        fits = self.lengths(numbers) <= self._limit
        possible = (task != tokens.CONTROLLABLE_TTS) | (self._reader.columns["fault"][record] == 0)
        return np.array([weight for _, weight in self._tasks])[which] * (fits & possible)

    def read(self, numbers: Int[np.ndarray, " some"]) -> list[tokens.Example | None]:
        """Reads some examples; None: one that is left out, and counted.

        Raises:
          SparkError: an example cannot be used, and `on_error` is not skip; or the index is that of another tokenizer.
        """
        examples: list[tokens.Example | None] = []
        records, tasks = np.divmod(numbers, len(self._tasks))
        lengths = self.lengths(numbers)
        for which, number, length, record in zip(tasks, records, lengths, self._reader.read(records), strict=True):
            task = self._tasks[which][0]
            try:
                if isinstance(record, SparkError):
                    raise record
                utterance = record.fields | record.arrays
                check_text(utterance)
                check_ids(utterance, self._sizes)
                example = tokens.make_example(self._tokenizer, self._classes, task, utterance)
            except (SparkError, KeyError, TypeError, ValueError) as error:
                where = "" if error is record else f"{self._reader.where(number)}: "
                self.dropped.fault("unreadable", SparkError(f"{where}{_reason(error)}"))
                examples.append(None)
                continue
            if len(example.ids) != length:
                raise SparkError(
                    f"{self._reader.where(number)}: {len(example.ids)} tokens as {tokens.TASK_NAMES[task]}, its index "
                    f"says {length}; expected the tokenizer that the records were made with"
                )
            examples.append(example)
        return examples

    def _count_dropped(self) -> None:
        counts, faults = self._reader.columns["tokens"], self._reader.columns["fault"]
        for task, _ in self._tasks:
            name, fits = tokens.TASK_NAMES[task], counts <= self._limit - self._extra[task]
            if task == tokens.CONTROLLABLE_TTS:
                found = np.bincount(faults, minlength=len(self._reader.fields["faults"]))
                for reason, count in list(zip(self._reader.fields["faults"], found.tolist(), strict=False))[1:]:
                    self.dropped.add(f"{name}: {reason}", count)
                fits |= faults != 0
            self.dropped.add(f"{name}: too long", int(np.count_nonzero(~fits)))


_TASKS = (tokens.TTS, tokens.CONTROLLABLE_TTS)


def control_tokens(tokenizer: SparkTokenizer, task: int) -> int:
    """Counts the tokens of a sequence beside those of text, global ids and semantic ids."""
    record = {
        "text": "a",
        "global_ids": [0],
        "semantic_ids": [0],
        "gender": attributes.GENDERS[0],
        "language": "en",
        "pitch": 200.0,
        "speed": 4.0,
    }
    example = tokens.make_example(tokenizer, tokens.class_table(tokenizer), task, record)
    return len(example.ids) - content_tokens(tokenizer, record)


def content_tokens(tokenizer: SparkTokenizer, record: Mapping[str, Any]) -> int:
    """Counts the tokens of text, global ids and semantic ids: what an index of records holds."""
    return len(tokenizer.encode_text(record["text"])) + len(record["global_ids"]) + len(record["semantic_ids"])


def utterance_fault(record: Mapping[str, Any]) -> str:
    """Returns why an utterance is left out of training altogether (spec: Labels), or ""."""
    speed = record.get("speed")
    return "too fast" if _is_number(speed) and speed > attributes.MAX_SPEED_VALUE else ""


FAULTS = ("", "unknown gender", "unsupported language", "no pitch", "no speed")


def controllable_fault(record: Mapping[str, Any]) -> str:
    """Returns why an utterance gives no controllable_tts sequence, one of `FAULTS`; "": it does."""
    if record.get("gender") not in attributes.GENDERS:
        return "unknown gender"
    if record.get("language") not in tuple(attributes.SPEED_BOUNDARIES):
        return "unsupported language"
    pitch, speed = record.get("pitch"), record.get("speed")
    if not _is_number(pitch) or pitch < 0:
        return "no pitch"
    return "" if _is_number(speed) and speed >= 0 else "no speed"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _reason(error: Exception) -> str:
    return f"field {error.args[0]!r} is missing" if isinstance(error, KeyError) else one_line(error)


def fragments(
    record: dict[str, Any], max_words: int, token_rate: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Cuts an utterance at word boundaries into records of one to `max_words` words each, in order.

    From short texts a small model learns early which letters sound how; reading along a sentence comes after. Needs
    the fields `phonemes` and `phoneme_bounds` of align_corpus.py; utterances whose words and phonemes do not
    pair up give none.
    """
    words, spoken = record["text"].split(), record["phonemes"].split(" ")
    if len(words) != len(spoken) or len(words) < 2:
        return []
    starts = np.cumsum([0, *(len(word) + 1 for word in spoken)])  # characters before each word
    ids, cuts, parts = record["semantic_ids"], [0], []
    while cuts[-1] < len(words):
        cuts.append(min(cuts[-1] + int(rng.integers(1, max_words + 1)), len(words)))
    for first, last in itertools.pairwise(cuts):
        start, end = 0, len(ids)
        if first > 0:
            start = int(record["phoneme_bounds"][starts[first]] * token_rate)
        if last < len(words):
            end = -int(-record["phoneme_bounds"][starts[last] - 1] * token_rate // 1)
        if end > start:
            parts.append(record | {"text": " ".join(words[first:last]), "semantic_ids": ids[start:end]})
    return parts
