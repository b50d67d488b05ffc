"""Streams of speech: as the whole, many at a time, in long texts; given up, slow listeners, faults."""

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest

from spark_jax.errors import SparkError
from spark_jax.inference import spoken_text, stream
from spark_jax.inference.checks import Finding
from spark_jax.inference.engine import EngineSettings
from spark_jax.inference.long_text import Piece, Plan, piece_seed, try_seed
from spark_jax.inference.parts import StreamSettings
from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS

BLOCK = 8
LONG = "[pause 0.1s]First of all. " + "Then another sentence. " * 30 + "\n\nThe end."


@pytest.fixture(scope="module")
def tts(tiny_model_directory):
    engine = EngineSettings(slots=4, block=BLOCK, capacity=1024)
    return SparkTTS.load(tiny_model_directory, engine=engine, stream=StreamSettings(parts=(4, 16), look_ahead=6))


def engine_of(tts):
    return tts._speech_engine._engine


def request(number=0, **options):
    options = {
        "text": f"Text {number}.",
        "gender": "female",
        "seed": number,
        "max_seconds": 1.5,
        "retries": 0,
    } | options
    return Request(**options)


def whole(tts, asked):
    [(_, audio)] = tts.synthesize_batch([asked])
    return audio


def settled(tts):
    """Waits until the engine has nothing to do."""
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("spark-jax")]:
        thread.join(60)
    return engine_of(tts).load == (0, 0) and not engine_of(tts).busy and not tts._stream_vocoder._open


def test_streams_of_many_threads_are_their_wholes(tts):
    asked = [request(number, max_seconds=0.2 + number / 3) for number in range(6)]
    found = [None] * len(asked)

    def listen(number):
        found[number] = list(tts.stream(asked[number]))

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, chunks in zip(asked, found, strict=True):
        expected = whole(tts, own)
        np.testing.assert_allclose(np.concatenate([chunk.samples for chunk in chunks]), expected.samples, atol=1e-6)
        assert [chunk.start for chunk in chunks] == np.cumsum(
            [0, *(len(chunk.samples) for chunk in chunks[:-1])]
        ).tolist()
        assert {chunk.text for chunk in chunks} == {own.text} and {chunk.sample_rate for chunk in chunks} == {16000}
    assert len(found[-1]) > 3 and settled(tts)


def test_a_long_text_is_that_of_the_batch(tts):
    """In the voice that its first piece makes up, with its pauses."""
    asked = request(text=LONG, max_seconds=None, seed=3)
    expected = whole(tts, asked)
    with tts.stream(asked) as found:
        samples = np.concatenate([chunk.samples for chunk in found])
    np.testing.assert_allclose(samples, expected.samples, atol=1e-6)
    assert found.spans == expected.spans and len(found.spans) > 2
    assert found.checks == expected.checks and found.reached_limit == expected.reached_limit
    assert not samples[:1600].any()


def test_a_closed_stream_frees_its_slot_within_a_block(tts, monkeypatch):
    blocks, turn = [], engine_of(tts).turn
    monkeypatch.setattr(engine_of(tts), "turn", lambda: [blocks.append(engine_of(tts).load), turn()][1])
    found = tts.stream(request(2, max_seconds=8.0))
    next(found)
    seen = len(blocks)
    found.close()
    assert settled(tts) and len(blocks) <= seen + 2  # the one that was being made, and the one after the message
    assert list(found) == []


def test_who_waits_for_a_stream_is_told_that_it_is_closed(tts, monkeypatch):
    monkeypatch.setattr(tts._speech_engine, "submit", lambda *_: -1)  # nothing ever comes
    found, heard = tts.stream(request(2)), []
    waiting = threading.Thread(target=lambda: heard.extend(found))
    waiting.start()
    while not found._speaking._pieces:
        time.sleep(0.01)
    found.close()
    waiting.join(60)
    assert not waiting.is_alive() and heard == []


def test_a_stream_that_nobody_holds_is_given_up(tts):
    next(tts.stream(request(2, max_seconds=8.0)))
    assert settled(tts)


def test_a_slow_listener_has_few_pieces_ahead_and_the_rest_of_its_text_waits(tts, monkeypatch):
    submitted, submit = [], tts._speech_engine.submit
    monkeypatch.setattr(tts._speech_engine, "submit", lambda *job: [submitted.append(job), submit(*job)][1])
    asked = request(text="A sentence of words. " * 400, max_seconds=None, seed=5)
    with tts.stream(asked) as found:
        next(found)
        deadline = time.monotonic() + 60
        while len(submitted) < 1 + stream.AHEAD and time.monotonic() < deadline:
            time.sleep(0.05)
        settled(tts)
        assert len(submitted) == 1 + stream.AHEAD
    assert len(tts.plan(asked)[0].pieces) > 5


def test_what_fails_is_spoken_again_before_it_is_heard(tts, monkeypatch):
    """But the first piece, which is heard as soon as something is there, unless all of it comes at once."""
    seen = []

    def check(text, *_, **__):
        seen.append(text)
        return (Finding("loop", 2.0, 1.0, "it goes in circles"),) if seen.count(text) < 3 else ()

    monkeypatch.setattr(spoken_text, "check_speech", check)
    seeds, submit = [], tts._speech_engine.submit
    monkeypatch.setattr(tts._speech_engine, "submit", lambda job, to: [seeds.append(job.job.seed), submit(job, to)][1])
    text = "x" * 400 + ". " + "y" * 400 + ". " + "z" * 400 + "."
    with tts.stream(request(text=text, max_seconds=None, seed=7, retries=2)) as found:
        chunks = list(found)
    tries = [span.tries for span in found.spans]
    assert tries[0] in (1, 3) and set(tries[1:]) == {3} and len(tries) > 1
    assert len(found.checks) == (tries[0] < 3)
    second = piece_seed(7, 1)
    assert {second, try_seed(second, 1), try_seed(second, 2)} <= set(seeds) and len(set(seeds)) == sum(tries)
    assert [span.start for span in found.spans] == [
        min(chunk.start for chunk in chunks if chunk.piece == number) for number in range(len(tries))
    ]


@pytest.mark.parametrize(
    ("lengths", "heard_at_once"),
    [([9], [0]), ([50, 100, 300, 301, 20], [0]), ([50, 101, 303, 10], [0, 1, 2]), ([300, 9, 9, 40], [0, 3])],
)
def test_what_is_heard_at_once_is_told_by_the_text(lengths, heard_at_once):
    """A piece that is more than twice as long as the two before it: its end would be waited for."""
    plan = Plan(tuple(Piece("x" * length, 0.2) for length in lengths))
    assert [place for place in range(len(lengths)) if stream.is_heard_at_once(plan, place)] == heard_at_once


def test_retries_depend_on_the_text_alone(tts, monkeypatch):
    """The same chunks for a fast listener beside another and for a slow one that is alone."""

    def check(text, samples, *_, **__):
        return (Finding("loop", 2.0, 1.0, "it goes in circles"),) * (int(1e6 * np.abs(samples).sum()) % 3)

    monkeypatch.setattr(spoken_text, "check_speech", check)
    text = "\n\n".join(["Begin.", "x" * 40, "y" * 60, "z" * 200, "The end."])
    asked = request(text=text, max_seconds=None, seed=11, retries=2)

    def listen(pause):
        with tts.stream(asked) as found:
            chunks = []
            for chunk in found:
                chunks.append((chunk.start, chunk.piece, chunk.samples.tobytes()))
                pause()
            return chunks, found.spans, found.checks

    with tts.stream(request(2, max_seconds=8.0)) as other:
        next(other)
        expected = listen(lambda: None)
    assert len(expected[1]) == 5 and max(span.tries for span in expected[1]) > 1
    assert listen(lambda: settled(tts)) == expected


def test_low_latency_begins_earlier_and_is_as_long(tts):
    asked = request(4)
    exact, low = list(tts.stream(asked)), list(tts.stream(asked, latency="low"))
    assert sum(len(chunk.samples) for chunk in low) == sum(len(chunk.samples) for chunk in exact)
    assert len(low[0].samples) == 3 * 320  # a token less, which is faded
    with pytest.raises(SparkError, match="latency is 'none', expected exact or low"):
        tts.stream(asked, latency="none")


def test_asynchronous_streams_share_the_engine(tts):
    asked = [request(number) for number in range(3)]

    async def listen(own):
        async with tts.stream_async(own) as found:
            return np.concatenate([chunk.samples async for chunk in found])

    async def leave(own):
        async with tts.stream_async(own) as found:
            async for _ in found:
                return

    async def all_of_them():
        return await asyncio.gather(*map(listen, asked), leave(request(9, max_seconds=8.0)))

    *found, _ = asyncio.run(all_of_them())
    for own, samples in zip(asked, found, strict=True):
        np.testing.assert_allclose(samples, whole(tts, own).samples, atol=1e-6)
    assert settled(tts)


def test_errors_are_raised_where_the_stream_is_read_and_the_next_one_speaks(tts, monkeypatch):
    with pytest.raises(SparkError, match="the model has no default voice"):
        next(tts.stream(Request(text="Hello.")))
    with pytest.raises(SparkError, match="top_k is 1000"):
        next(tts.stream(request(top_k=1000)))
    for owner, name in ((engine_of(tts), "_read"), (tts.codec, "vocode_part")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                list(tts.stream(request(1)))

    async def failing():
        with contextlib.suppress(SparkError):
            async for _ in tts.stream_async(Request(text="Hello.")):
                pass
            return "no error"

    assert asyncio.run(failing()) is None
    samples = np.concatenate([chunk.samples for chunk in tts.stream(request(1))])
    np.testing.assert_allclose(samples, whole(tts, request(1)).samples, atol=1e-6)


@pytest.mark.extended
def test_nothing_is_compiled_after_the_warm_up(tts):
    tts.warmup()
    counts = tts.codec._detokenize_part._cache_size(), engine_of(tts)._read._cache_size()
    list(tts.stream(request(text="Several words in it.", seed=1)))
    assert (
        tts.codec._detokenize_part._cache_size(),
        engine_of(tts)._read._cache_size(),
    ) == counts and counts[0] == 2
