"""Text longer than a model speaks in one piece: the plan of its pieces, and their speech put together.

The plan depends on the text and on what the model knows alone; whoever speaks the pieces, one after the other or many
at a time, joins their samples by it. No model and no JAX.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from spark_jax.config import SparkConfig
from spark_jax.text.clean import has_speech
from spark_jax.text.reading import Reading, as_sentence
from spark_jax.text.split import Boundary, split_text
from spark_jax.text_config import MIN_LENGTH

# Seconds of silence after a piece that ends so; the speech has some of its own at its ends.
PAUSES: dict[Boundary, float] = {"paragraph": 0.5, "sentence": 0.2, "clause": 0.1, "word": 0.0}
CHARACTERS_PER_SECOND = 10.0  # of slow speech: so much text fits into the longest answer with certainty
_SEEDS = 2**32
_SEED_STEP = 0x9E3779B1  # odd, so that no two pieces of a text have the same seed
_TRY_STEP = 0x85EBCA6B


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece that is spoken at once.

    Attributes:
      text: for the prompt.
      pause: seconds of silence after it.
    """

    text: str
    pause: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is spoken for a text.

    Attributes:
      pieces: at least one, in their order.
      lead: seconds of silence before the first.
    """

    pieces: tuple[Piece, ...]
    lead: float = 0.0


@dataclasses.dataclass(frozen=True)
class SpokenWord:
    """Where a word is heard.

    Attributes:
      text: of the word, with the signs around it.
      start, end: its samples are `samples[start:end]` of the whole.
    """

    text: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Span:
    """Where a piece is heard.

    Attributes:
      text: of the piece, as it was spoken.
      start, end: its samples are `samples[start:end]`; the pause after it is not among them.
      tries: how often it was spoken until nothing was wrong with it, or no try was left.
      words: its words, where they were looked for and found (see `WordAligner`).
    """

    text: str
    start: int
    end: int
    tries: int = 1
    words: tuple[SpokenWord, ...] = ()


def max_length(config: SparkConfig) -> int:
    """Returns the longest piece for a model, in the units of `split.spoken_length`."""
    if config.text.max_length is not None:
        return config.text.max_length
    tokens = min(config.max_semantic_tokens, config.llm.max_position_embeddings // 2)
    return max(MIN_LENGTH, int(tokens / config.token_rate * CHARACTERS_PER_SECOND))


def plan_pieces(reading: Reading, config: SparkConfig) -> Plan:
    """Divides a text into pieces that the model speaks well, with the pauses that belong between them.

    A pause that is written into the text takes the place of the one that its punctuation would make.
    """
    pieces: list[Piece] = []
    pause = 0.0
    for text, pause in reading.stretches:
        parts = split_text(text, max_length(config), join=config.text.join_sentences)
        spoken = [part for part in parts if has_speech(part.text)]  # "..." alone would be noise
        pauses = [PAUSES[part.boundary] for part in spoken[:-1]] + [pause or PAUSES["paragraph"]]
        texts = (as_sentence(part.text) if reading.normalized else part.text for part in spoken)
        pieces += map(Piece, texts, pauses)
    pieces[-1] = dataclasses.replace(pieces[-1], pause=pause)  # nothing follows it but what is written
    return Plan(tuple(pieces), reading.lead)


def piece_seed(seed: int, number: int) -> int:
    """Returns the seed of a piece, counted from 0: the first has the request's, each another one of its own."""
    return (seed + number * _SEED_STEP) % _SEEDS


def try_seed(seed: int, number: int) -> int:
    """Returns the seed of a piece that is spoken again, of its own one: try 0 has that."""
    return (seed + number * _TRY_STEP) % _SEEDS


def join_pieces(
    plan: Plan, speech: Sequence[Float[np.ndarray, "_"]], sample_rate: int
) -> tuple[Float[np.ndarray, " time"], tuple[Span, ...]]:
    """Returns the samples of a whole text, and where each piece is heard in them.

    Args:
      plan: what was to be spoken.
      speech: samples of its first pieces, or of all.
      sample_rate: Hz.
    """
    silence = lambda seconds: np.zeros(round(seconds * sample_rate), np.float32)  # noqa: E731
    parts, spans, position = [silence(plan.lead)], [], round(plan.lead * sample_rate)
    for piece, samples in zip(plan.pieces, speech, strict=False):
        spans.append(Span(piece.text, position, position + len(samples)))
        parts += [samples, silence(piece.pause)]
        position += len(samples) + len(parts[-1])
    return np.concatenate(parts), tuple(spans)
