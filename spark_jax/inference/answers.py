"""What the model said to a prompt: its length and its limit, and speech tokens sorted from other tokens."""

import dataclasses

import numpy as np
from jaxtyping import Int

from spark_jax.text.grammar import Grammar
from spark_jax.text.prompt import END, Prompt
from spark_jax.text.tokenizer import SparkTokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """What the model said to one prompt.

    Attributes:
      semantic_ids: semantic codes, one for each token of speech; without those of a reference in the prompt.
      global_ids: global codes, the prompt's or, for a made-up voice, the generated ones.
      pitch_value, speed_value: the prompt's or the generated ones; None where neither has any.
      reached_limit: cut off, because the limit on new tokens came before <|im_end|>.
      new_tokens: how many tokens were generated, with <|im_end|>.
    """

    semantic_ids: Int[np.ndarray, " time"]
    global_ids: Int[np.ndarray, " global"]
    pitch_value: int | None
    speed_value: int | None
    reached_limit: bool
    new_tokens: int


def new_tokens(grammar: Grammar, prompt: Prompt, semantic_tokens: int) -> int:
    """Returns the limit on new tokens with which an answer holds at most this many semantic tokens."""
    return grammar.index("first_semantic") - grammar.index(prompt.start) + semantic_tokens + 1


def speech_codes(
    tokenizer: SparkTokenizer, tokens: Int[np.ndarray, " output"]
) -> tuple[Int[np.ndarray, " time"], Int[np.ndarray, " global"]]:
    """Returns the semantic and the global codes among tokens, in their order."""
    semantic, made = tokenizer.semantic_codes[tokens], tokenizer.global_codes[tokens]
    return semantic[semantic >= 0], made[made >= 0]


def read(
    tokenizer: SparkTokenizer, prompt: Prompt, tokens: Int[np.ndarray, " output"], reached_limit: bool
) -> Generation:
    """Sorts the tokens of one answer; after <|im_end|> there may only be more of it."""
    semantic_ids, made = speech_codes(tokenizer, tokens)
    pitch, speed = np.isin(tokenizer.pitch_value_ids, tokens), np.isin(tokenizer.speed_value_ids, tokens)
    return Generation(
        semantic_ids=semantic_ids,
        global_ids=made if prompt.global_ids is None else np.array(prompt.global_ids, np.int32),
        pitch_value=int(np.argmax(pitch)) if pitch.any() else prompt.pitch_value,
        speed_value=int(np.argmax(speed)) if speed.any() else prompt.speed_value,
        reached_limit=reached_limit,
        new_tokens=len(tokens) if reached_limit else int(np.argmax(tokens == tokenizer.id(END))) + 1,
    )
