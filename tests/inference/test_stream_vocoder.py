"""Many utterances whose tokens come bit by bit: each as the whole, in any company; batches, faults and gaps."""

import dataclasses
import queue
import threading

import numpy as np
import pytest
from helpers import tiny_config, tiny_model

from spark_jax.config import SourceConfig
from spark_jax.inference.codec import Codec
from spark_jax.inference.parts import StreamSettings
from spark_jax.inference.stream_vocoder import StreamVocoder
from spark_jax.model_directory.parameters import abstract_part

SETTINGS = StreamSettings(parts=(4, 16), look_ahead=6, rows=4)
HOP = tiny_config.tiny().latent_hop_length


def codec_of(source):
    own = tiny_config.tiny()
    if source:
        decoder = dataclasses.replace(own.bicodec.decoder, source=SourceConfig((0, 1), (1,)))
        own = dataclasses.replace(own, bicodec=dataclasses.replace(own.bicodec, decoder=decoder))
    return Codec(own, {"bicodec": tiny_model.draw(abstract_part("bicodec", own.bicodec))})


@pytest.fixture(scope="module")
def codec():
    return codec_of(source=False)


def utterances(count, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 90, count)
    return [(rng.integers(0, 64, 32).astype(np.int32), rng.integers(0, 64, n).astype(np.int32)) for n in lengths]


def stream(vocoder, global_ids, ids, cuts, latency="exact"):
    """The chunks of one utterance whose tokens come in the given amounts."""
    found = queue.SimpleQueue()
    number = vocoder.open(lambda *result: found.put(result), latency)
    for new in np.split(ids, cuts):
        vocoder.extend(number, global_ids, new)
    vocoder.end(number)
    chunks, last = [], False
    while not last:
        samples, last = found.get(timeout=60)
        if isinstance(samples, Exception):
            raise samples
        chunks.append(samples)
    return chunks


def all_at_once(vocoder, items, latency="exact"):
    found = [None] * len(items)

    def one(place):
        rng = np.random.default_rng(place)
        cuts = np.sort(rng.integers(0, len(items[place][1]) + 1, 6))
        found[place] = stream(vocoder, *items[place], cuts, latency)

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("source", [False, pytest.param(True, marks=pytest.mark.extended)])
def test_chunks_of_many_streams_are_their_wholes(codec, source):
    codec = codec_of(source=True) if source else codec
    items, vocoder = utterances(9), StreamVocoder(codec, SETTINGS)
    found, expected = all_at_once(vocoder, items), codec.decode(items)
    for chunks, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-6)
    assert any(len(chunks) > 4 for chunks in found) and np.std(np.concatenate(expected)) > 0.003
    assert codec._detokenize_part._cache_size() == 2


def test_low_latency_is_nearly_so_and_the_same_every_time(codec):
    """The nearer the longer the look-ahead."""
    items, distances = utterances(5, seed=1), []
    wholes = codec.decode(items)
    for look_ahead in (2, 6, 12):
        vocoder = StreamVocoder(codec, dataclasses.replace(SETTINGS, look_ahead=look_ahead))
        found = [np.concatenate(chunks) for chunks in all_at_once(vocoder, items, "low")]
        assert [len(samples) for samples in found] == [len(whole) for whole in wholes]
        distances.append(np.sum([np.sum((one - other) ** 2) for one, other in zip(found, wholes, strict=True)]))
        np.testing.assert_array_equal(np.concatenate(stream(vocoder, *items[0], [], "low")), found[0])
    power = np.sum([np.sum(whole**2) for whole in wholes])
    short, longer, longest = np.sqrt(np.asarray(distances) / power)
    assert 0.3 > short > longer > longest > 0 and longest < 0.05


def test_an_utterance_without_tokens_has_no_samples(codec):
    [samples] = stream(StreamVocoder(codec, SETTINGS), np.zeros(32, np.int32), np.zeros(0, np.int32), [])
    assert samples.shape == (0,)


def test_one_that_is_closed_gets_nothing_more_and_the_thread_ends(codec):
    vocoder, found, before = StreamVocoder(codec, SETTINGS), [], set(threading.enumerate())
    number = vocoder.open(lambda *result: found.append(result))
    [thread] = set(threading.enumerate()) - before
    assert thread.name == "spark-jax vocoder"
    vocoder.close(number)
    vocoder.extend(number, np.zeros(32, np.int32), np.zeros(50, np.int32))
    vocoder.end(number)
    thread.join(60)
    assert not thread.is_alive()
    assert found == []


def test_an_error_is_told_and_the_next_is_spoken(codec, monkeypatch):
    vocoder, items = StreamVocoder(codec, SETTINGS), utterances(2)
    with monkeypatch.context() as patch:
        patch.setattr(codec, "vocode_part", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream(vocoder, *items[0], [])
    expected = codec.decode(items)[1]
    np.testing.assert_allclose(np.concatenate(stream(vocoder, *items[1], [])), expected, atol=1e-6)
