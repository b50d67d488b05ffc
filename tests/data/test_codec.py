"""Segments, windows and reference clips of the codec's training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.tiny_config import tiny

from spark_jax.audio.normalize import highpass
from spark_jax.config import RELEASE
from spark_jax.data import audio_sources, codec, pipeline
from spark_jax.data.config import CodecDataConfig
from spark_jax.data.pitch_tracks import PitchTracks
from spark_jax.data.sources import DropCounter
from spark_jax.errors import SparkError
from spark_jax.wav2vec2.model import num_frames

CONFIG = dataclasses.replace(tiny(), volume_normalize=False)


def make_examples(records, *arguments, **options):
    return codec.CodecExamples([audio_sources.FolderAudio(records, 16_000)], CONFIG, *arguments, **options)


def generators(count, seed=0):
    return [np.random.default_rng((seed, row)) for row in range(count)]


@pytest.fixture
def records(tmp_path):
    """Three utterances, shorter than a segment, about as long, and longer than two."""
    rng = np.random.default_rng(0)
    paths = []
    for i, length in enumerate((2000, 7000, 20_000)):
        path = tmp_path / f"{i}.flac"
        soundfile.write(path, rng.uniform(-0.5, 0.5, length), 16_000)
        paths.append({"wav_path": str(path), "duration": length / 16_000})
    return paths


def test_batch_is_aligned_and_repeatable(records):
    examples = make_examples(records, segment_seconds=0.4, context_seconds=0.1)
    load = lambda: examples.load(np.array([0, 1, 2]), generators(3, 5))  # noqa: E731
    batch = load()
    assert {name: array.shape for name, array in batch.items()} == {
        "wave": (3, 6400),
        "input_values": (3, 9600),
        "reference": (3, 8000),
    }
    assert all(array.dtype == np.float32 for array in batch.values())
    for name, array in load().items():
        np.testing.assert_array_equal(array, batch[name])
    # The window's middle is the segment, normalized; beyond the utterance both are zero.
    middle = batch["input_values"][:, 1600:8000]
    np.testing.assert_array_equal(batch["wave"][0, 2000:], 0)
    np.testing.assert_array_equal(middle[0, 2000:], 0)
    for wave, values in zip(batch["wave"], middle, strict=True):
        inside = wave != 0
        slope, offset = np.polyfit(wave[inside], values[inside], 1)
        np.testing.assert_allclose(values[inside], slope * wave[inside] + offset, atol=1e-4)


def test_memory_changes_nothing_audible(records):
    batches = []
    for keep in (False, True):
        examples = make_examples(records, 0.4, 0.1, keep_in_memory=keep)
        batches += [examples.load(np.array([2, 1]), generators(2)) for _ in range(2)]
    for batch in batches[1:]:
        np.testing.assert_allclose(batch["wave"], batches[0]["wave"], atol=1e-4)


@pytest.mark.parametrize("keep", [False, True])
def test_a_restored_iterator_goes_on_with_the_same_batches(records, keep):
    """In the second epoch, with nothing in memory of what the first one read."""

    def make():
        examples = make_examples(records, 0.4, 0.1, keep_in_memory=keep)
        return pipeline.batches(examples.plan(1, 0), examples.load, 6, seed=0)

    iterator = make()
    whole = [next(iterator) for _ in range(4)]
    resumed = make()
    resumed.set_state(iterator.get_state())
    whole += list(iterator)
    for ours, theirs in zip(resumed, whole[4:], strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_whole_utterances_end_in_padding(records):
    """What inference encodes: the utterance from its start, with its length; longer ones are left out."""
    examples = make_examples(records, 0.5, 0.1, whole_utterances=True)
    assert {int(i) for batch in examples.plan(2, 0)(0) for i in batch} == {0, 1}
    batch = examples.load(np.array([0, 1]), generators(2))
    assert batch["lengths"].tolist() == [2000, 7000] and batch["input_values"].shape == (2, 8000)
    for row, length in zip(batch["input_values"], batch["lengths"], strict=True):
        assert not row[length:].any()
        assert abs(row[:length].mean()) < 1e-3 and abs(row[:length].std() - 1) < 1e-3
    with pytest.raises(SparkError, match="at most segment_seconds, 0.1 s"):
        make_examples(records, 0.1, 0.1, whole_utterances=True)


def test_window_statistics_ignore_padding():
    window = np.concatenate([np.zeros(50), 3 + 2 * np.random.default_rng(0).normal(size=500)]).astype(np.float32)
    values = codec.normalize_window(window, np.arange(550) >= 50)
    np.testing.assert_array_equal(values[:50], 0)
    np.testing.assert_allclose([values[50:].mean(), values[50:].std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize(("start", "length", "expected"), [(-2, 3, [0, 0, 1]), (3, 4, [4, 5, 0, 0]), (7, 2, [0, 0])])
def test_cut(start, length, expected):
    np.testing.assert_array_equal(codec.cut(np.arange(1.0, 6.0), start, length), expected)


def test_reference_hears_nothing_of_the_segment():
    audio = np.arange(1, 101, dtype=np.float32)
    reference = codec.random_reference(audio, 20, 30, 100, np.random.default_rng(0))
    np.testing.assert_array_equal(reference[20:50], 0)
    assert np.all(reference[50:] > 0) and audio[20] == 21
    # Not longer than twice the segment: whole, and repeated where it is too short.
    reference = codec.random_reference(audio, 20, 50, 150, np.random.default_rng(0))
    np.testing.assert_array_equal(reference, np.resize(audio, 150))


@pytest.mark.parametrize(("tokens", "context"), [(1, 1), (60, 20), (120, 50), (777, 3)])
def test_features_meet_samples(tokens, context):
    """120 feature frames for 38,400 samples, whatever the length."""
    assert num_frames(320 * (tokens + 2 * context), RELEASE.wav2vec2) >= context + tokens


@pytest.mark.parametrize("seconds", [0.41, 0.0, -0.4])
def test_lengths_are_whole_tokens(records, seconds):
    with pytest.raises(SparkError, match="segment_seconds: .*multiple of 320"):
        make_examples(records, seconds, 0.1)


def test_tokens_stand_for_their_samples(records, tmp_path):
    """Segments start at whole tokens; utterances shorter than a segment are dropped."""
    records = [record | {"index": str(i)} for i, record in enumerate(records)]
    path = tmp_path / "tokens.jsonl"
    lines = [{"index": i, "semantic_ids": list(range(n)), "global_ids": [7]} for i, n in (("0", 5), ("2", 61))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    joined = audio_sources.with_tokens(records, str(path))
    assert [record["index"] for record in joined] == ["0", "2"]
    examples = make_examples(joined, 0.4, 0.1, from_tokens=True)
    assert len(examples) == 1 and examples.dropped == {"fewer ids than a segment": 1}
    whole, _ = examples._audio(1, examples._sources.sources[0], 1)
    batch = examples.load(np.array([1, 1]), generators(2))
    assert set(batch) == {"wave", "semantic_ids", "global_ids"}
    for wave, ids in zip(batch["wave"], batch["semantic_ids"], strict=True):
        np.testing.assert_array_equal(ids, np.arange(ids[0], ids[0] + 20))
        np.testing.assert_array_equal(wave, whole[ids[0] * 320 :][:6400])
    with pytest.raises(SparkError, match="200 semantic ids or more"):
        make_examples(joined, 4.0, 0.1, from_tokens=True)
    with pytest.raises(SparkError, match="no utterance of the corpus has ids in it"):
        audio_sources.with_tokens([record | {"index": "x"} for record in records], str(path))


def test_audio_that_cannot_be_read_is_an_error_or_another_stands_in(records, caplog):
    """The stand-in is the same after a resume: drawn from the row's generator."""
    sources = [audio_sources.FolderAudio(records, 16_000, dropped=DropCounter("skip")) for _ in range(2)]
    stopping = make_examples(records, 0.4, 0.1)
    Path(records[1]["wav_path"]).write_bytes(b"no audio")
    with pytest.raises(SparkError, match="1.flac: not readable as audio"):
        stopping.load(np.array([0, 1]), generators(2))
    loaded = []
    for source in sources:
        examples = codec.CodecExamples([source], CONFIG, 0.4, 0.1)
        loaded.append(examples.load(np.array([0, 1, 2]), generators(3)))
        assert examples.dropped["unreadable"] >= 1 and "1.flac: not readable as audio" in caplog.text
    for name, array in loaded[0].items():
        np.testing.assert_array_equal(array, loaded[1][name])
        assert np.abs(array[1]).max() > 0
    for record in records:
        Path(record["wav_path"]).write_bytes(b"no audio")
    with pytest.raises(SparkError, match="100 utterances in a row cannot be read"):
        examples.load(np.array([0]), generators(1))


def test_lengths_are_the_files_and_what_cannot_be_opened_is_left_out_at_the_start(records):
    records = [record | {"duration": 0.01} for record in records]  # of other files
    source = audio_sources.FolderAudio(records, 16_000)
    np.testing.assert_allclose(source.seconds, [0.125, 0.4375, 1.25])
    examples = codec.CodecExamples([source], CONFIG, 0.4, 0.1, whole_utterances=True)
    assert len(examples) == 1 and examples.dropped == {"too long": 2}
    Path(records[0]["wav_path"]).unlink()
    Path(records[2]["wav_path"]).write_bytes(b"no audio")
    with pytest.raises(SparkError, match="0.flac: no such file"):
        audio_sources.FolderAudio(records, 16_000)
    source = audio_sources.FolderAudio(records, 16_000, dropped=DropCounter("skip"))
    assert len(source) == 1 and source.dropped.counts == {"no such file": 1, "unreadable audio": 1}
    with pytest.raises(SparkError, match="no file of 2 utterances can be read, 2 dropped"):
        audio_sources.FolderAudio(records[::2], 16_000, dropped=DropCounter("skip"))


def test_a_mixture_draws_from_its_corpora_by_weight(records):
    parts = [audio_sources.FolderAudio(records, 16_000, weight) for weight in (2.0, 1.0)]
    examples = codec.CodecExamples(parts, CONFIG, 0.5, 0.1, whole_utterances=True)
    assert sorted(np.concatenate(examples.plan(3, 0)(0)).tolist()) == [0, 0, 1, 1, 3, 4]
    assert examples.dropped == {"too long": 2} and examples.summary()["utterances"] == 6
    assert examples.summary()["hours"] == pytest.approx(3 * 9000 / 16_000 / 3600)


@pytest.mark.parametrize("from_tokens", [True, False])
def test_segments_begin_with_a_token_and_have_its_pitch(records, tmp_path, from_tokens):
    """The track tells the token's number, with which the samples must agree."""
    hop, tokens = CONFIG.latent_hop_length, 60
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, tokens * hop)
    soundfile.write(tmp_path / "noise.flac", noise, 16_000)
    np.save(tmp_path / "f0.npy", np.arange(tokens, dtype=np.uint16))
    record = {"wav_path": str(tmp_path / "noise.flac"), "duration": 1.2, "f0_start": 0, "f0_frames": tokens}
    record |= {"semantic_ids": list(range(tokens))} if from_tokens else {}
    source = audio_sources.FolderAudio([record], 16_000, tracks=PitchTracks(tmp_path))
    examples = codec.CodecExamples(
        [source], CONFIG, 0.2, 0.1, from_tokens=from_tokens, reference_clips=from_tokens, pitch=True
    )
    batch = examples.load(np.zeros(6, int), generators(6))
    assert batch["f0"].shape == batch["f0_filled"].shape == (6, 10) and batch["f0_mean"].shape == (6,)
    assert batch["reference"].shape == (6, CONFIG.ref_segment_samples) and "global_ids" not in batch
    first = np.round(batch["f0"][:, 0] * 10).astype(int)
    assert len(set(first)) > 3
    whole = highpass(source.read(0)[0], 16_000).astype(np.float32)
    for wave, token in zip(batch["wave"], first, strict=True):
        np.testing.assert_array_equal(wave, whole[token * hop :][: 10 * hop])
    if from_tokens:
        np.testing.assert_array_equal(batch["semantic_ids"][:, 0], first)


def test_pitch_is_asked_of_folders_with_tracks(records, tmp_path):
    lines = [json.dumps(record | {"index": i, "split": "train"}) for i, record in enumerate(records)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    read = lambda: audio_sources.read_sources(str(tmp_path), CONFIG, CodecDataConfig(), "train", pitch=True)  # noqa: E731
    with pytest.raises(SparkError, match="f0.npy: cannot be read"):
        read()
    np.save(tmp_path / "f0.npy", np.zeros(4, np.uint16))
    [source] = read()
    with pytest.raises(SparkError, match="0 has f0_start None"):
        source.read(0)
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(SparkError, match="records have no pitch, expected a folder"):
        read()
