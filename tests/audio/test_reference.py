"""Recordings to clone: the reference's own way wherever nothing is wrong with them."""

import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from helpers import tiny_model

from spark_jax.audio import load, reference, voicing
from spark_jax.audio.containers import open_sound
from spark_jax.audio.quiet import silent_libraries
from spark_jax.errors import SparkError

CASES = Path(__file__).parents[1] / "assets" / "cases"


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.opus"])
@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_ordinary_recordings_are_read_as_soundfile_does(tmp_path, name, rate):
    samples = tiny_model.speech(20.0)[: 5 * rate]
    coding = {"format": "OGG", "subtype": "OPUS"} if name == "a.opus" else {}
    soundfile.write(tmp_path / name, np.stack([samples, samples[::-1]], axis=1), rate, **coding)
    whole, found = soundfile.read(tmp_path / name, dtype="float64", always_2d=True)
    expected = whole[:, 0] if found == 16_000 else soxr.resample(whole[:, 0], found, 16_000, quality="VHQ")
    for spoken in (False, True):
        np.testing.assert_array_equal(reference.load_reference(tmp_path / name, 16_000, spoken), expected)
    np.testing.assert_array_equal(load.load_audio(tmp_path / name, 16_000), expected)


@pytest.mark.parametrize(
    ("silence", "skipped"), [(0.0, 0.0), (0.5, 0.0), (0.98, 0.0), (1.0, 0.9), (7.0, 6.9), (40.0, 39.9)]
)
def test_silence_is_skipped_where_it_is_long(tmp_path, silence, skipped):
    samples = np.concatenate([np.zeros(round(silence * 16_000)), tiny_model.speech(2.0)])
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="DOUBLE")
    for spoken in (False, True):
        found = reference.load_reference(tmp_path / "a.wav", 16_000, spoken)
        np.testing.assert_array_equal(found, samples[round(skipped * 16_000) :])
    np.testing.assert_array_equal(load.load_audio(tmp_path / "a.wav", 16_000), samples)  # ids are the reference's


def test_a_room_is_no_silence(tmp_path):
    samples = np.concatenate([0.002 * np.random.default_rng(0).standard_normal(48_000), tiny_model.speech(2.0)])
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="DOUBLE")
    np.testing.assert_array_equal(reference.load_reference(tmp_path / "a.wav", 16_000), samples)


def test_no_more_than_30_seconds(tmp_path):
    samples = np.tile(tiny_model.speech(10.0), 5)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="DOUBLE")
    np.testing.assert_array_equal(reference.load_reference(tmp_path / "a.wav", 16_000), samples[: 30 * 16_000])
    with pytest.raises(SparkError, match=r"a\.wav: longer than 30 s, the most that a transcript may go with"):
        reference.load_reference(tmp_path / "a.wav", 16_000, spoken=True)
    soundfile.write(tmp_path / "b.wav", samples[: 30 * 16_000], 16_000)
    reference.check_length(tmp_path / "b.wav")
    with pytest.raises(SparkError, match=r"a\.wav: longer than 30 s"):
        reference.check_length(tmp_path / "a.wav")


def test_what_is_too_long_for_memory_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "MAX_SAMPLES", 16_000)
    soundfile.write(tmp_path / "a.wav", tiny_model.speech(1.5), 16_000)
    with pytest.raises(SparkError, match=r"a\.wav: longer than 1 s at 16000 Hz, the most that is read at once"):
        load.load_audio(tmp_path / "a.wav", 16_000)


@pytest.mark.parametrize("rate", [1000, 3999, 1_000_000])
def test_rates_of_no_sound(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tiny_model.speech(1.0), rate)
    with pytest.raises(SparkError, match=f"sample rate is {rate} Hz, expected 4000 to 768000"):
        load.load_audio(tmp_path / "a.wav", 16_000)


def test_blocks_are_small_whatever_the_channels(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((4_000, 512)), 16_000)
    with open_sound(tmp_path / "a.wav") as sound:
        sizes = [block.size for block in sound.blocks]
    assert sum(sizes) == 4_000 * 512 and max(sizes) <= 2**18


def test_voices_and_noise():
    rng = np.random.default_rng(0)
    white = rng.standard_normal(96_000)
    voices = [load.load_audio(CASES / name, 16_000) for name in ("lead7s_silence.flac", "header_length_0.wav")]
    assert min(voicing.voiced_part(samples, 16_000) for samples in (*voices, tiny_model.speech(6.0))) > 0.2
    assert min(voicing.steadiness(samples, 16_000) for samples in voices) > 5
    for noise in (white, np.cumsum(white), white * (1 + np.sin(np.arange(96_000) / 600))):
        assert voicing.voiced_part(noise, 16_000) < 0.02
    assert voicing.voiced_part(np.zeros(16_000), 16_000) == voicing.voiced_part(np.zeros(10), 16_000) == 0
    tone = np.sin(np.arange(16_000) * 0.1)
    assert voicing.voiced_part(tone, 16_000) == 1 and voicing.steadiness(tone, 16_000) < 0.1


def test_libraries_are_silent_for_a_while_only(capfd):
    import os

    def write():
        with silent_libraries():
            os.write(2, b"noise")

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
