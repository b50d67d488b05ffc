"""Audio files out: what is written is read again, in every format, at every rate."""

import numpy as np
import pytest
import soundfile

from spark_jax.audio import write
from spark_jax.errors import SparkError


def test_wav_is_of_16_bits_and_clipped(tmp_path):
    samples = np.array([0.0, 0.5, -1.5, 1.0], np.float32)
    write.write_audio(tmp_path / "out.wav", samples, 16_000)
    read, rate = soundfile.read(tmp_path / "out.wav", dtype="int16")
    assert rate == 16_000 and read.tolist() == [0, 16384, -32767, 32767]
    assert soundfile.info(tmp_path / "out.wav").subtype == "PCM_16"


def test_what_is_refused_leaves_nothing(tmp_path):
    with pytest.raises(SparkError, match="folder .*absent.* does not exist"):
        write.write_audio(tmp_path / "absent" / "out.wav", np.zeros(4), 16_000)
    (tmp_path / "taken.wav").mkdir()
    with pytest.raises(SparkError, match=r"taken\.wav: cannot be written"):
        write.write_audio(tmp_path / "taken.wav", np.zeros(4), 16_000)
    with pytest.raises(SparkError, match="NaN"):
        write.write_audio(tmp_path / "out.wav", np.array([np.nan]), 16_000)
    with pytest.raises(SparkError, match=r"extension '\.aif' is no format of audio, expected one of wav, flac, ogg"):
        write.write_audio(tmp_path / "out.aif", np.zeros(4), 16_000)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.wav"]


@pytest.mark.parametrize("name", write.FORMATS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100])
def test_every_format_at_every_rate(tmp_path, name, rate):
    """Rates that a coding lacks become the next higher one; length, pitch and level stay."""
    time = np.arange(3 * rate) / rate
    write.write_audio(tmp_path / f"out.{name}", 0.5 * np.sin(2 * np.pi * 440 * time), rate)
    samples, found = soundfile.read(tmp_path / f"out.{name}")
    rates = write.FORMATS[name][2]
    assert found == (min(r for r in rates if r >= rate) if rates else rate)
    assert abs(len(samples) / found - 3) < 0.1
    middle = samples[found : 2 * found]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440 and 0.3 < np.std(middle) < 0.4


def test_a_long_speech_in_every_format(tmp_path):
    """A minute at once overflows the stack of libsndfile's Vorbis encoder."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(60 * 16_000).astype(np.float32)
    for name in ("ogg", "opus"):
        write.write_audio(tmp_path / f"out.{name}", noise, 16_000)
        assert abs(soundfile.info(tmp_path / f"out.{name}").duration - 60) < 0.1


def test_a_library_without_a_coding_says_so(monkeypatch):
    monkeypatch.setattr(soundfile, "check_format", lambda container, coding: coding == "PCM_16")
    with pytest.raises(SparkError, match=r"out\.mp3: libsndfile [\d.]+ cannot write mp3; expected wav"):
        write.format_of("out.mp3")
    assert write.format_of("out.flac") == "flac"
