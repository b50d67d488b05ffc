"""Whole speech, for tools/benchmark_inference.py: many texts through the engine, and streams that are listened to."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import heard
import numpy as np
from heard import Heard
from inference_programs import Bench
from inference_timing import Measurement, Side, Times, one_by_one

from spark_jax.errors import SparkError
from spark_jax.inference.request import Request


def batch(bench: Bench, found: Sequence[Measurement], texts: int, torch_texts: int) -> Iterator[Measurement]:
    """Measures texts end to end, all together; PyTorch speaks some of them, one after the other.

    Args:
      bench: what all sections share.
      found: what was measured before. With `decode` of as many slots and `vocode` of the same type among it, the
        roofline is that of both, one after the other.
      texts: how many.
      torch_texts: how many PyTorch speaks in each round; its seconds are given for as much speech as ours.
    """
    subject, before = bench.subject, bench.compiler.seconds
    tts, requests = subject.tts, subject.requests(texts)
    made: dict[int, float] = {}
    tokens: dict[int, int] = {}

    def ours(requests: list[Request]) -> None:
        for number, audio in tts.synthesize_batch(requests):
            if isinstance(audio, SparkError):
                raise audio
            made[number], tokens[number] = len(audio.samples) / audio.sample_rate, len(audio.semantic_ids)

    # Everything that these texts need is compiled: prompts of every length, every window, the vocoder. Those that
    # random weights speak all need the same.
    ours(requests if subject.embedded else requests[:1])
    compiling, programs = bench.compiler.seconds - before, bench.compiler.programs
    their_speech = _torch_speech(bench, requests[:torch_texts])
    sides: dict[str, Side] = {"ours": lambda _: ours(requests)}
    if their_speech is not None:
        sides["PyTorch"] = lambda _: their_speech()
    times = one_by_one(sides, bench.rounds)
    audio, theirs = sum(made.values()), times.get("PyTorch", Times())
    share = audio / (len(requests[:torch_texts]) * subject.seconds or 1.0)
    slots = tts.engine.slots
    yield Measurement(
        "batch",
        f"{texts} texts, {slots} slots, {subject.dtype}",
        "audio s",
        audio,
        times["ours"],
        Times(*(tuple(each * share for each in own) for own in theirs)),
        at_best=_at_best(found, slots, subject.dtype, audio, sum(tokens.values())),
        compiling=compiling,
        more={
            "slots": slots,
            "tokens": sum(tokens.values()),
            "seconds of a text": audio / texts,
            "programs compiled in the rounds": bench.compiler.programs - programs,
        },
    )


def streams(bench: Bench, counts: list[int], latency: str) -> Iterator[tuple[int, list[list[Heard]]]]:
    """Measures streams that begin at once: yields their number, and what was heard of each in each round."""
    tts = bench.subject.tts
    requests = bench.subject.requests(max(*counts, 8))
    by_length = sorted(requests, key=lambda request: len(request.text))

    def begin(requests: list[Request]) -> list[Callable[[], Any]]:
        return [partial(tts.stream, request, latency) for request in requests]

    # Compiles: prompts of every length, every window, and every part of the vocoder.
    heard.listen_together(begin([by_length[0], by_length[len(by_length) // 2], by_length[-1]]))
    for count in counts:
        yield count, [heard.listen_together(begin(requests[:count])) for _ in range(bench.rounds)]


def _at_best(found: Sequence[Measurement], slots: int, dtype: str, audio: float, tokens: int) -> float | None:
    """Returns the seconds that decoding and vocoding take at least, by what was found of them; None: it was not."""
    decode = [own for own in found if own.section == "decode" and own.more["slots"] == slots]
    vocode = [own for own in found if own.section == "vocode" and own.sizes.endswith(f", {dtype}")]
    if not decode or not vocode:
        return None
    parts = ((decode[-1], tokens), (vocode[-1], audio))
    return sum(own.at_best / own.amount * amount for own, amount in parts)


def _torch_speech(bench: Bench, requests: list[Request]) -> Callable[[], None] | None:
    """Returns what speaks these texts by PyTorch, one after the other; None: there is no comparison."""
    if bench.subject.embedded or not requests or bench.torch_llm is None or bench.torch_codec is None:
        return None
    subject, codec, llm = bench.subject, bench.torch_codec, bench.torch_llm
    speaker = np.zeros((1, subject.sizes.bicodec.speaker_encoder.token_num), np.int32)
    count = round(subject.seconds * subject.sizes.token_rate)
    codes = subject.tokenizer.semantic_codes

    def speak() -> None:
        for request in requests:
            ids = subject.tokenizer.encode_text(request.text)
            prompt = np.resize(np.asarray(ids, np.int32), (1, len(ids) + speaker.size + 5))  # with the voice's tokens
            answers = llm.read(prompt)
            answers.go_on(count - 1)
            codec.vocode(np.maximum(codes[answers.tokens], 0), speaker)

    return speak
