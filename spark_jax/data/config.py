"""What the training configurations say of their data."""

import dataclasses
from typing import Literal

from spark_jax.dataclass_reader import PlainNumbers


@dataclasses.dataclass(frozen=True)
class SourceConfig(PlainNumbers):
    """One source of a mixture.

    With weight 2 all of it is read twice an epoch; with weight 0.5 half of it, another half in each epoch.
    """

    path: str  # may be a pattern of several folders: "records/voxbox-*"
    weight: float = 1.0


# A path alone is one source of weight 1.
Sources = str | tuple[SourceConfig, ...]


@dataclasses.dataclass(frozen=True)
class AudioDataConfig(PlainNumbers):
    """Utterances batched by duration: each bucket has one fixed shape, hence one compilation."""

    bucket_seconds: tuple[float, ...] = (2.0, 3.0, 4.0, 6.0, 10.0)  # longer utterances are dropped
    batch_seconds: float = 60.0  # padded audio in a batch
    train_split: str = "train"
    evaluation_split: str = "validation"
    evaluation_batches: int = 8
    threads: int = 2
    prefetch: int = 4


@dataclasses.dataclass(frozen=True)
class TokenDataConfig(PlainNumbers):
    """Sequences of tokens packed into rows of one fixed length."""

    row_length: int = 512
    batch_rows: int = 16  # rows of one micro-batch, over all devices
    max_length: int = 1500  # longer sequences are dropped and counted
    # Sequences of each task per utterance and epoch; a fraction is drawn anew each epoch.
    tts_weight: float = 1.0
    controllable_weight: float = 1.0
    # Every sequence of a voice has the global ids of its typical utterance: for corpora of a few voices, whose
    # utterances' own ids are mostly noise to a small model. JSON Lines only, as are fragments.
    common_globals: bool = False
    fragment_weight: float = 0.0  # of each of the pieces that an utterance is cut into between words
    fragment_words: int = 3
    semantic_noise: float = 0.0  # share of semantic input tokens replaced by random ones, in training
    on_error: Literal["raise", "skip"] = "raise"  # a record that cannot be used; skipped ones are counted
    train_split: str = "train"
    evaluation_split: str = "validation"
    evaluation_batches: int = 4
    threads: int = 1
    prefetch: int = 4


@dataclasses.dataclass(frozen=True)
class CodecDataConfig(PlainNumbers):
    """Random segments of utterances, each with a reference clip."""

    segment_seconds: float = 2.4  # whole tokens
    context_seconds: float = 1.0  # on each side, heard by wav2vec2 only; whole tokens
    batch_segments: int = 256
    whole_utterances: bool = False  # of at most a segment, in place of segments: short speech, for phase "features"
    high_pass_hz: float = 40.0
    keep_in_memory: bool = False  # prepared utterances stay in memory, as 16-bit samples
    on_error: Literal["raise", "skip"] = "raise"  # audio that cannot be read; another utterance stands in if skipped
    train_split: str = "train"
    evaluation_split: str = "validation"
    # Of batch_segments each, made once and kept in memory. Utterances that fill no whole batch are never evaluated; a
    # split with fewer than one batch has some of them more than once in it.
    evaluation_batches: int = 4
    threads: int = 2
    prefetch: int = 4
