"""Proofs of streams at length: fifty sentences, the release's sizes, many texts, an hour of text."""

import dataclasses
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import tiny_model

from spark_jax import config
from spark_jax.evaluation.protocols import HELD_OUT_SENTENCES
from spark_jax.inference.codec import Codec
from spark_jax.inference.engine import EngineSettings
from spark_jax.inference.request import Request
from spark_jax.inference.stream_vocoder import StreamVocoder
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.model_directory.parameters import abstract_part

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tts():
    return SparkTTS.load()


@pytest.fixture(scope="module")
def sentences():
    return HELD_OUT_SENTENCES.read_text(encoding="utf-8").split("\n")[:50]


def speak(tts, request, latency="exact"):
    with tts.stream(request, latency) as stream:
        return [chunk.samples for chunk in stream]


def test_fifty_streams_are_their_wholes_without_a_click(tts, sentences):
    """Of the embedded voice, eight at a time; between chunks samples jump no further than within them."""
    requests = [Request(text=text, retries=0) for text in sentences]
    wholes = dict(tts.synthesize_batch(requests))
    with ThreadPoolExecutor(8) as pool:
        exact = list(pool.map(lambda request: speak(tts, request), requests))
        low = list(pool.map(lambda request: speak(tts, request, "low"), requests))
    assert len(requests) == 50 and np.mean([len(chunks) for chunks in exact]) > 3
    errors, jumps, inside, added, distances = [], [], [], [], []
    for number, (chunks, nearly) in enumerate(zip(exact, low, strict=True)):
        samples, whole = np.concatenate(chunks), wholes[number].samples
        errors.append(np.max(np.abs(samples - whole)))
        for joined in (chunks, nearly):
            edges = np.cumsum([len(chunk) for chunk in joined])[:-1]
            steps = np.diff(np.concatenate(joined))
            jumps.append(np.max(np.abs(steps[edges - 1])))
            inside.append(np.max(np.abs(np.delete(steps, edges - 1))))
            added.append(np.max(np.abs(steps - np.diff(whole))[edges - 1]))
        nearly = np.concatenate(nearly)
        distances.append(10 * np.log10(np.sum((nearly - whole) ** 2) / np.sum(whole**2)))
    print(f"largest error {max(errors):.1e}; low latency {np.median(distances):.1f} dB, worst {max(distances):.1f} dB")
    print(
        f"largest jump at edges {max(jumps):.3f}, inside {max(inside):.3f}; at most {max(added):.1e} is not the whole's"
    )
    assert max(errors) < 1e-5
    assert all(jump <= most for jump, most in zip(jumps, inside, strict=True)) and max(added) < 0.01
    assert max(distances) < -30


def test_parts_at_the_sizes_of_the_release_are_the_whole():
    """Of random weights."""
    own = config.RELEASE
    codec = Codec(own, {"bicodec": tiny_model.draw(abstract_part("bicodec", own.bicodec))})
    rng = np.random.default_rng(0)
    said = rng.integers(0, own.bicodec.quantizer.codebook_size, 190).astype(np.int32)
    speaker = rng.integers(0, 4096, 32).astype(np.int32)
    vocoder, chunks = StreamVocoder(codec), []
    [whole] = codec.decode([(speaker, said)])
    number = vocoder.open(lambda samples, last: chunks.append((samples, last)))
    for new in np.split(said, range(8, len(said), 8)):
        vocoder.extend(number, speaker, new)
    vocoder.end(number)
    vocoder._thread.join()
    samples = np.concatenate([chunk for chunk, _ in chunks])
    print(f"{len(chunks)} chunks, largest error {np.max(np.abs(samples - whole)):.1e} of {np.max(np.abs(whole)):.3f}")
    assert len(chunks) >= 4 and np.std(whole) > 1e-3
    np.testing.assert_allclose(samples, whole, atol=1e-5)


def test_no_failure_of_five_hundred_texts_is_silent(tts, sentences):
    """Every finding was followed by further tries, and is told where it is left."""
    requests = [
        Request(text=sentences[number % 50], seed=number, temperature=1.2 if number % 5 == 0 else None)
        for number in range(500)
    ]
    first = dict(tts.synthesize_batch([dataclasses.replace(request, retries=0) for request in requests]))
    found = dict(tts.synthesize_batch(requests))
    flagged = [number for number in range(500) if first[number].checks]
    left = [number for number in range(500) if found[number].checks]
    print(f"{len(flagged)} of 500 texts fail a check at first, {len(left)} in the best of three tries")
    for number, audio in found.items():
        [span] = audio.spans
        assert (span.tries > 1) == bool(first[number].checks)
        assert not audio.checks or span.tries == 3
        if number not in flagged:
            np.testing.assert_array_equal(audio.samples, first[number].samples)
    assert set(left) <= set(flagged)


def test_an_hour_of_text_takes_no_more_memory_than_minutes(tts, sentences):
    tts = SparkTTS.load(engine=EngineSettings(slots=1))
    text = "\n\n".join(" ".join(sentences) for _ in range(40))
    seconds, peaks = 0.0, {}
    with tts.stream(Request(text=text)) as stream:
        for chunk in stream:
            seconds += len(chunk.samples) / chunk.sample_rate
            peaks[int(seconds // 300)] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            if seconds > 3600:
                break
    print(f"{seconds:.0f} s of speech; MB at most, every five minutes: {[round(peak) for peak in peaks.values()]}")
    assert seconds > 3600 and peaks[11] - peaks[1] < 60  # all samples would be 230 MB
