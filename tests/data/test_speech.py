import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spark_jax.config import MelConfig, SparkConfig, Wav2Vec2Config, WaveGeneratorConfig
from spark_jax.data import pipeline
from spark_jax.data.config import AudioDataConfig
from spark_jax.data.pitch_tracks import PitchTracks
from spark_jax.data.speech import SpeechExamples, frame_labels
from spark_jax.errors import SparkError
from spark_jax.text.vocabulary import Vocabulary


@pytest.fixture
def records(tmp_path):
    records = []
    for i, (seconds, text) in enumerate([(0.5, "ab"), (0.8, "b"), (1.5, "aab"), (3.0, "a"), (0.1, "ababab")]):
        samples = np.full(round(seconds * 16000), (i + 1) / 8, np.float32)
        soundfile.write(tmp_path / f"{i}.flac", samples, 16000)
        records.append({"index": i, "wav_path": str(tmp_path / f"{i}.flac"), "duration": seconds, "text": text})
    return records


def examples_of(records, bucket_seconds, batch_seconds, row_multiple=1):
    data = AudioDataConfig(bucket_seconds=bucket_seconds, batch_seconds=batch_seconds)
    return SpeechExamples(records, "text", Vocabulary(["a", "b"]), data, SparkConfig(), row_multiple)


def test_buckets_padding_and_what_is_left_out(records):
    examples = examples_of(records, (1.0, 2.0), 4.0)
    # 3 s are too long; six labels do not fit 0.1 s.
    assert examples.buckets.tolist() == [0, 0, 1, -1, -1] and examples.dropped == 2
    assert examples.batch_sizes == [4, 2]
    first, second = [examples.load(rows, []) for rows in examples.plan(None)(0)]
    assert first["samples"].shape == (4, 16000) and second["samples"].shape == (2, 32000)
    assert first["lengths"].tolist() == [8000, 12800, 0, 0]
    assert first["target_lengths"].tolist() == [2, 1, 0, 0]
    assert first["targets"][:, :2].tolist() == [[1, 2], [2, 0], [0, 0], [0, 0]]
    np.testing.assert_allclose(first["samples"][0, :8000], 1 / 8, atol=1e-4)
    assert not first["samples"][0, 8000:].any() and not first["samples"][2].any()


def test_rows_are_a_multiple_of_the_devices(records):
    examples = examples_of(records, (1.0, 2.0), 7.0, row_multiple=4)
    assert examples.batch_sizes == [4, 4]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_make_the_batch_of_one(records, count):
    """Shapes and rows, also of a process that has only empty rows."""
    examples = examples_of(records, (1.0, 2.0, 4.0), 4.0, row_multiple=4)
    whole, *parts = (
        pipeline.evaluation_batches(examples.plan(None), examples.load, None, *share)
        for share in [(0, 1), *((i, count) for i in range(count))]
    )
    assert [np.count_nonzero(batch["lengths"]) for batch in whole] == [2, 1, 1]
    for batch, *shares in zip(whole, *parts, strict=True):
        for name, values in batch.items():
            assert len({share[name].shape for share in shares}) == 1, name
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), values)


def test_frame_labels_follow_the_bounds():
    # Frames see 0–25, 20–45, 40–65, … ms: their middles are 12.5, 32.5, 52.5, 72.5, 92.5, 112.5 ms.
    labels = frame_labels([0.03, 0.06, 0.1], [7, 9], 2000, SparkConfig())
    np.testing.assert_array_equal(labels, [0, 7, 7, 9, 9, 0])


def test_durations_are_the_files(records):
    wrong = [record | {"duration": 0.2} for record in records]
    assert examples_of(wrong, (1.0, 2.0), 4.0).buckets.tolist() == [0, 0, 1, -1, -1]
    records[1]["text"] = None
    with pytest.raises(SparkError, match="utterance 1: text is None, expected a text"):
        examples_of(records, (1.0, 2.0), 4.0)
    Path(records[0]["wav_path"]).unlink()
    with pytest.raises(SparkError, match="0.flac: no such file"):
        examples_of(wrong, (1.0, 2.0), 4.0)


def test_frames_of_another_rate_have_its_length(tmp_path):
    """At 24 kHz and 240 samples a hop they see 0–16.7, 10–26.7, … ms: their middles are 8.3, 18.3, 28.3 ms."""
    front_end = Wav2Vec2Config(conv_dim=(8, 8), conv_kernel=(160, 2), conv_stride=(120, 2))
    bicodec = dataclasses.replace(
        SparkConfig().bicodec,
        mel_params=MelConfig(sample_rate=24_000),
        decoder=WaveGeneratorConfig(rates=(8, 6, 5), kernel_sizes=(16, 12, 10)),
    )
    system = SparkConfig(sample_rate=24_000, latent_hop_length=240, bicodec=bicodec, wav2vec2=front_end)
    assert system.token_rate == 100 and front_end.frame_length == 280
    labels = frame_labels([0.01, 0.02, 0.03], [7, 9], 24_000, system)
    assert len(labels) == 98 + 1
    assert labels[:4].tolist() == [0, 7, 9, 0]
    # A second holds 99 frames, and so 98 labels that differ: one more is left out.
    texts = ["ab" * 49, "ab" * 49 + "a"]
    soundfile.write(tmp_path / "a.flac", np.full(24_000, 0.1), 24_000)
    records = [{"index": i, "wav_path": str(tmp_path / "a.flac"), "text": text} for i, text in enumerate(texts)]
    data = AudioDataConfig(bucket_seconds=(1.0,))
    assert SpeechExamples(records, "text", Vocabulary(["a", "b"]), data, system).buckets.tolist() == [0, -1]


def test_rows_have_the_pitch_of_their_frames(records, tmp_path):
    """Zero where the track, which may be longer or shorter than the frames, says so or ends."""
    np.save(tmp_path / "f0.npy", np.arange(1, 201, dtype=np.uint16) * 10)
    places = [(0, 25), (25, 10), (35, 80)]
    tracked = [r | {"f0_start": a, "f0_frames": n} for r, (a, n) in zip(records, places, strict=False)]
    data = AudioDataConfig(bucket_seconds=(1.0, 2.0), batch_seconds=4.0)
    make = lambda records: SpeechExamples(  # noqa: E731
        records, "text", Vocabulary(["a", "b"]), data, SparkConfig(), tracks=PitchTracks(tmp_path)
    )
    examples = make(tracked)
    batch = examples.load(examples.plan(None)(0)[0], [])
    assert batch["f0"].shape == (4, 49) and batch["f0"].dtype == np.float32
    np.testing.assert_allclose(batch["f0"][0, :26], [*range(1, 26), 0])
    np.testing.assert_allclose(batch["f0"][1, :11], [*range(26, 36), 0])
    assert not batch["f0"][2:].any() and "path" not in batch
    untracked = make(records)
    with pytest.raises(SparkError, match="0 has f0_start None"):
        untracked.load(untracked.plan(None)(0)[0], [])


def test_aligned_utterances_with_unknown_characters_are_left_out(records):
    data = AudioDataConfig(bucket_seconds=(1.0, 2.0), batch_seconds=4.0)
    bounded = [r | {"phoneme_bounds": list(np.linspace(0, 0.4, len(r["text"]) + 1))} for r in records[:3]]
    make = lambda aligned: SpeechExamples(bounded, "text", Vocabulary(["a"]), data, SparkConfig(), 1, aligned)  # noqa: E731
    assert make(False).buckets.tolist() == [0, 0, 1]
    examples = make(True)
    assert examples.buckets.tolist() == [-1, -1, -1] and examples.dropped == 3
