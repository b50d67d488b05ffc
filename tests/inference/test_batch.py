"""Many requests through one engine: each as alone, in any company; iterators that end, fail and are given up."""

import asyncio
import contextlib
import dataclasses
import itertools
import queue
import threading
import warnings

import numpy as np
import pytest

from spark_jax.errors import SparkError
from spark_jax.inference.engine import EngineSettings
from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS


@pytest.fixture(scope="module")
def tts(tiny_model_directory):
    return SparkTTS.load(tiny_model_directory, engine=EngineSettings(slots=4, block=8, capacity=512))


def requests(count, first=0):
    """Texts that a random model speaks once: it seldom says what it should."""
    return [
        Request(
            text=f"Text {number}.",
            gender=("male", "female")[number % 2],
            seed=number,
            max_seconds=0.3 + number % 5 / 2,
            retries=0,
        )
        for number in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def alone(tts):
    found = []
    for request in requests(10):
        [(number, audio)] = tts.synthesize_batch([request])
        assert number == 0
        found.append(audio)
    return found


def check(found, alone):
    for number, audio in found.items():
        np.testing.assert_array_equal(audio.semantic_ids, alone[number].semantic_ids)
        np.testing.assert_array_equal(audio.global_ids, alone[number].global_ids)
        np.testing.assert_array_equal(audio.samples, alone[number].samples)
        assert audio.reached_limit == alone[number].reached_limit


def test_together_as_alone(tts, alone, capsys):
    found = dict(tts.synthesize_batch(requests(10), progress=True))
    assert sorted(found) == list(range(10))
    check(found, alone)
    assert "10/10" in capsys.readouterr().err
    assert len({len(audio.samples) for audio in found.values()}) > 3


def test_as_one_sentence_alone(tts, alone):
    """Slots and batches of the vocoder differ, so that samples do, but for rounding."""
    for request, found in zip(requests(4), alone, strict=False):
        with pytest.warns(UserWarning, match="has no end") if found.reached_limit else contextlib.nullcontext():
            audio = tts.speak(request)
        np.testing.assert_array_equal(audio.semantic_ids, found.semantic_ids)
        np.testing.assert_allclose(audio.samples, found.samples, atol=1e-5)


def test_async_iterators_share_the_engine(tts, alone):
    async def speak(order):
        chosen = requests(10)
        mixed = [chosen[number] for number in order]
        return {order[number]: audio async for number, audio in tts.synthesize_batch_async(mixed)}

    async def both():
        return await asyncio.gather(speak(list(range(10))), speak(list(reversed(range(10)))))

    for found in asyncio.run(both()):
        assert sorted(found) == list(range(10))
        check(found, alone)


def test_a_long_text_is_spoken_in_its_pieces(tts):
    """Each with its own seed, the later ones in the voice that the first has made up; as one sentence alone."""
    request = Request(text="One sentence here. " * 60, gender="male", max_seconds=6.0, seed=4, retries=0)
    assert len(tts.plan(request)[0].pieces) > 1
    [(_, found)] = tts.synthesize_batch([request])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = tts.speak(request)
    np.testing.assert_array_equal(found.semantic_ids, expected.semantic_ids)
    np.testing.assert_allclose(found.samples, expected.samples, atol=1e-5)
    assert found.spans == expected.spans and len(found.spans) > 1


def listened(tts, request, vocode):
    """The speech of a one-piece request's job, and what a listener heard of it, in order."""
    job = dataclasses.replace(tts._text(request).next_job()[1], vocode=vocode)
    heard, found = [], queue.SimpleQueue()
    job = dataclasses.replace(job, on_tokens=lambda voice, new: heard.append((voice, new)))
    tts._speech_engine.submit(job, found.put)
    return found.get(timeout=60), heard


@pytest.mark.parametrize("vocode", [True, False])
def test_tokens_are_heard_while_they_are_made(tts, alone, vocode):
    for request, expected in zip(requests(3), alone, strict=False):
        speech, heard = listened(tts, request, vocode)
        np.testing.assert_array_equal(np.concatenate([new for _, new in heard]), expected.semantic_ids)
        assert all(0 < len(new) <= tts._speech_engine._engine.settings.block + 1 for _, new in heard)
        assert all(np.array_equal(voice, expected.global_ids) for voice, _ in heard)
        np.testing.assert_array_equal(speech.semantic_ids, expected.semantic_ids)
        np.testing.assert_array_equal(speech.samples, expected.samples if vocode else [])


def test_nothing_is_heard_after_a_cancellation_and_the_slot_is_free(tts, alone):
    numbers, left, heard, delivered = queue.SimpleQueue(), threading.Event(), [], []

    def leave(voice, new):  # in the engine's thread, in the middle of a block's results
        heard.append(new)
        tts._speech_engine.cancel(numbers.get(timeout=60))
        left.set()

    job = tts._text(requests(1, 3)[0]).next_job()[1]
    numbers.put(tts._speech_engine.submit(dataclasses.replace(job, on_tokens=leave), delivered.append))
    assert left.wait(60)
    check(dict(tts.synthesize_batch(requests(6))), alone)
    assert len(heard) == 1 and delivered == [] and tts._speech_engine._engine.load == (0, 0)


def test_an_endless_iterator_that_is_given_up(tts, alone):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield requests(1, number % 10)[0]

    found = tts.synthesize_batch(endless())
    check({number % 10: audio for number, audio in itertools.islice(found, 5)}, alone)
    found.close()
    assert len(taken) <= 5 + 2 * 4
    for thread in [thread for thread in threading.enumerate() if thread.name == "spark-jax engine"]:
        thread.join(60)
    assert tts._speech_engine._engine.load == (0, 0) and not tts._speech_engine._engine.busy
    check(dict(tts.synthesize_batch(requests(2))), alone)


def test_the_error_of_a_request_is_its_own(tts, alone, tmp_path):
    bad = {
        0: (Request(text="Hello.", gender="male", max_seconds=50), "max_seconds is 50, expected at most"),
        2: (Request(text="Hello."), "the model has no default voice"),
        3: (Request(text="Hello.", gender="male", top_k=1000), "top_k is 1000, expected at most 64"),
        5: (Request(text="Hello.", reference=tmp_path / "none.wav"), "none.wav"),
        6: (Request(text="Hello.", voice=tmp_path / "none.voice"), "none.voice"),
        9: (
            Request(text="Hello.", gender="male", max_seconds=1, top_k=65),
            "top_k is 65, expected at most 64, the engine's max_top_k",
        ),
    }
    good = iter(requests(4))
    mixed = [bad[number][0] if number in bad else next(good) for number in range(10)]
    found = dict(tts.synthesize_batch(mixed))

    async def speak():
        return {number: answer async for number, answer in tts.synthesize_batch_async(mixed)}

    for answers in (found, asyncio.run(speak())):
        assert sorted(answers) == list(range(10))
        for number, (_, message) in bad.items():
            assert isinstance(answers[number], SparkError) and message in str(answers[number])
        check(dict(enumerate(answers[number] for number in range(10) if number not in bad)), alone)


def test_an_error_on_the_device_is_told_to_all_and_what_comes_later_is_spoken(tts, alone, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(tts._speech_engine._engine, "_read", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(tts.synthesize_batch(requests(3)))
    check(dict(tts.synthesize_batch(requests(3))), alone)
