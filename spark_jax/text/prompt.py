"""Prompts and training sequences (paper §3.2).

Pure functions of a tokenizer, a text, and numbers. Attributes are numbers here: gender 0 (female) or 1 (male), levels 0
to 4, whole mel, whole syllables per second; `spark_jax.text.attributes` makes them from names and Hz.

The completions of all prompts go through the same stages, and start at a later one the more the prompt gives:

    start_acoustic pitch speed end_acoustic | start_global global × 32 end_global | start_semantic
    ^ voice creation                          ^ fine-grained                        ^ cloning
    first_semantic semantic ... | done
    ^ cloning with a transcript
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from spark_jax.errors import SparkError
from spark_jax.text.tokenizer import SparkTokenizer

END = "<|im_end|>"

# Integers. Whatever else a record or a request may hold is refused by `_tokens`.
Codes = Sequence[Any] | Shaped[np.ndarray, "_"]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids, the stage at which the model continues, and the values that the prompt fixes already."""

    ids: tuple[int, ...]
    start: str
    global_ids: tuple[int, ...] | None = None
    pitch_value: int | None = None
    speed_value: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingSequence:
    """Prompt and completion; the loss counts the tokens where the mask is True, which are those of the completion."""

    ids: Int[np.ndarray, " length"]
    loss_mask: Bool[np.ndarray, " length"]


def cloning_prompt(
    tokenizer: SparkTokenizer,
    text: str,
    global_ids: Codes,
    transcript: str | None = None,
    semantic_ids: Codes | None = None,
    pitch_value: int | None = None,
    speed_value: int | None = None,
) -> Prompt:
    """Returns the prompt that speaks a text in the voice of a reference.

    Args:
      tokenizer: the tokenizer.
      text: the text to speak.
      global_ids: global codes of the reference.
      transcript: text of the reference, given together with `semantic_ids`; the model then continues its speech.
      semantic_ids: semantic codes of the reference.
      pitch_value: pitch to aim at in mel, given together with `speed_value`. The release was not trained on cloning
        prompts with these values; its users report that they have an effect.
      speed_value: syllables per second to aim at.

    Raises:
      SparkError: the text is empty, a number is outside its range, or one of a pair is given without the other.
    """
    _check_text(text)
    if (transcript is None) != (semantic_ids is None):
        raise SparkError("a transcript and semantic ids of the reference go together: give both or neither")
    ids = [
        tokenizer.id("<|task_tts|>"),
        *_section(tokenizer, "content", tokenizer.encode_text((transcript or "") + text)),
    ]
    if pitch_value is not None or speed_value is not None:
        ids += _acoustic(tokenizer, pitch_value, speed_value)
    ids += _section(tokenizer, "global_token", _tokens("global id", tokenizer.global_ids, global_ids))
    start = "start_semantic"
    if semantic_ids is not None:
        ids.append(tokenizer.id("<|start_semantic_token|>"))
        ids += _tokens("semantic id", tokenizer.semantic_ids, semantic_ids)
        start = "first_semantic"
    return Prompt(tuple(ids), start, tuple(int(code) for code in global_ids), pitch_value, speed_value)


def creation_prompt(
    tokenizer: SparkTokenizer,
    text: str,
    gender: int,
    pitch_level: int,
    speed_level: int,
    pitch_value: int | None = None,
    speed_value: int | None = None,
) -> Prompt:
    """Returns the prompt that speaks a text in a new voice, from labels and, for fine-grained control, both values.

    Raises:
      SparkError: the text is empty, a number is outside its range, or one value is given without the other.
    """
    _check_text(text)
    labels = (
        _tokens("gender", tokenizer.gender_ids, [gender])
        + _tokens("pitch level", tokenizer.pitch_label_ids, [pitch_level])
        + _tokens("speed level", tokenizer.speed_label_ids, [speed_level])
    )
    ids = [
        tokenizer.id("<|task_controllable_tts|>"),
        *_section(tokenizer, "content", tokenizer.encode_text(text)),
        *_section(tokenizer, "style_label", labels),
    ]
    start = "start_acoustic"
    if pitch_value is not None or speed_value is not None:
        ids += _acoustic(tokenizer, pitch_value, speed_value)
        start = "start_global"
    return Prompt(tuple(ids), start, None, pitch_value, speed_value)


def tts_sequence(tokenizer: SparkTokenizer, text: str, global_ids: Codes, semantic_ids: Codes) -> TrainingSequence:
    """Returns an utterance as an example of cloning, with its own voice in the prompt and its speech to complete."""
    prompt = cloning_prompt(tokenizer, text, global_ids)
    return _sequence(prompt, _speech(tokenizer, semantic_ids))


def controllable_tts_sequence(
    tokenizer: SparkTokenizer,
    text: str,
    gender: int,
    pitch_level: int,
    speed_level: int,
    pitch_value: int,
    speed_value: int,
    global_ids: Codes,
    semantic_ids: Codes,
) -> TrainingSequence:
    """Returns an utterance as an example of voice creation: labels in the prompt; values, voice, speech to complete."""
    prompt = creation_prompt(tokenizer, text, gender, pitch_level, speed_level)
    completion = [
        *_acoustic(tokenizer, pitch_value, speed_value),
        *_section(tokenizer, "global_token", _tokens("global id", tokenizer.global_ids, global_ids)),
        *_speech(tokenizer, semantic_ids),
    ]
    return _sequence(prompt, completion)


def _check_text(text: str) -> None:
    if not text.strip():
        raise SparkError(f"text is {text!r}, expected something to say")


def _tokens(kind: str, token_ids: Int[np.ndarray, " codes"], codes: Codes) -> list[int]:
    """Returns the token ids of codes; a code outside the table is an error."""
    codes = np.asarray(codes)
    if codes.ndim != 1 or codes.size == 0 or not np.issubdtype(codes.dtype, np.integer):
        raise SparkError(f"{kind}s of shape {codes.shape}, type {codes.dtype}: expected a list of integers")
    wrong = codes[(codes < 0) | (codes >= len(token_ids))]
    if wrong.size:
        raise SparkError(f"{kind} {wrong[0]} is out of range, expected 0 to {len(token_ids) - 1}")
    return token_ids[codes].tolist()


def _section(tokenizer: SparkTokenizer, name: str, ids: Sequence[int]) -> list[int]:
    return [tokenizer.id(f"<|start_{name}|>"), *ids, tokenizer.id(f"<|end_{name}|>")]


def _acoustic(tokenizer: SparkTokenizer, pitch_value: int | None, speed_value: int | None) -> list[int]:
    if pitch_value is None or speed_value is None:
        raise SparkError("a pitch value and a speed value go together: give both of them or neither")
    values = _tokens("pitch value", tokenizer.pitch_value_ids, [pitch_value])
    values += _tokens("speed value", tokenizer.speed_value_ids, [speed_value])
    return _section(tokenizer, "acoustic_token", values)


def _speech(tokenizer: SparkTokenizer, semantic_ids: Codes) -> list[int]:
    """Returns semantic tokens after their start token; they end with <|im_end|>, not with their end token."""
    speech = _tokens("semantic id", tokenizer.semantic_ids, semantic_ids)
    return [tokenizer.id("<|start_semantic_token|>"), *speech, tokenizer.id(END)]


def _sequence(prompt: Prompt, completion: Sequence[int]) -> TrainingSequence:
    ids = np.array([*prompt.ids, *completion], np.int32)
    return TrainingSequence(ids, np.arange(len(ids)) >= len(prompt.ids))
