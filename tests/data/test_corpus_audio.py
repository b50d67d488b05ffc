"""Files of a corpus as people bring them: every kind that nothing can be learned from has a reason of its own."""

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import tiny_model

from spark_jax.data import corpus_audio
from spark_jax.data.corpus_audio import UnusableAudioError
from spark_jax.errors import SparkError

CASES = Path(__file__).parents[1] / "assets" / "cases"


def write(path, samples, rate=16_000, **options):
    soundfile.write(path, samples, rate, **options)
    return path


BAD = {
    "no such file": lambda path: None,
    "unreadable audio": lambda path: path.write_text("no audio"),
    "no samples": lambda path: write(path, np.zeros(0)),
    "silent": lambda path: write(path, np.full(8000, 5e-5), subtype="FLOAT"),
    "not finite": lambda path: write(path, np.where(np.arange(8000) == 7, np.nan, 0.1), subtype="FLOAT"),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_cannot_be_used_has_a_reason_and_one_line(tmp_path, reason):
    path = tmp_path / "a.wav"
    BAD[reason](path)
    with pytest.raises(UnusableAudioError, match=f"{path}: ") as caught:
        corpus_audio.read_audio(path, 16_000)
    assert caught.value.reason == reason and "\n" not in str(caught.value) and isinstance(caught.value, SparkError)


@pytest.mark.parametrize("samples", [np.full(9000, np.nan), np.full(9000, np.inf), np.zeros(9000), np.zeros((9000, 2))])
def test_variants_of_nothing_to_hear(tmp_path, samples):
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(UnusableAudioError) as caught:
        corpus_audio.read_audio(path, 16_000)
    assert caught.value.reason == ("silent" if not samples.any() else "not finite")


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x24\0\0\0WAVE", b"fLaC" + bytes(50), bytes(1000)])
def test_bytes_that_are_no_audio(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UnusableAudioError):
        corpus_audio.read_audio(tmp_path / "a.wav", 16_000)
    [found] = corpus_audio.audio_lengths([tmp_path / "a.wav"], 16_000)
    assert isinstance(found, UnusableAudioError)


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(UnusableAudioError, match="no such audio file") as caught:
        corpus_audio.read_audio(tmp_path, 16_000)
    assert caught.value.reason == "unreadable audio"


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_another_rate_is_resampled(tmp_path, rate):
    time = np.arange(rate) / rate
    path = write(tmp_path / "a.flac", 0.3 * np.sin(2 * np.pi * 440 * time), rate)
    samples = corpus_audio.read_audio(path, 16_000)
    assert samples.dtype == np.float32 and abs(len(samples) - 16_000) <= 1
    spectrum = np.abs(np.fft.rfft(samples[:16_000]))
    assert spectrum.argmax() == 440
    assert abs(corpus_audio.audio_length(path, 16_000) - len(samples)) <= 1


def test_the_first_channel_or_the_one_that_speaks(tmp_path):
    speech, buzz = tiny_model.speech(0.5), 0.3 * tiny_model.speech(0.5, 1)
    both = write(tmp_path / "both.flac", np.stack([buzz, speech], axis=1))
    np.testing.assert_allclose(corpus_audio.read_audio(both, 16_000), buzz, atol=1e-4)
    right = write(tmp_path / "right.flac", np.stack([0 * buzz, buzz, speech], axis=1))
    np.testing.assert_allclose(corpus_audio.read_audio(right, 16_000), speech, atol=1e-4)


def test_an_absurd_rate_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", tiny_model.speech(0.1))
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", 1)
    path.write_bytes(content)
    for look in (corpus_audio.read_audio, corpus_audio.audio_length):
        with pytest.raises(UnusableAudioError, match="sample rate is 1 Hz, expected"):
            look(path, 16_000)


def test_a_header_that_promises_too_much_takes_no_memory():
    file = io.BytesIO()
    soundfile.write(file, tiny_model.speech(0.3), 16_000, format="FLAC")
    content = bytearray(file.getvalue())
    content[21] |= 0x0F  # the length's upper bits: 2^36 samples, of which the file ends early
    content[22:26] = b"\xff" * 4
    with pytest.raises(UnusableAudioError, match="a.flac: cut off: 4800 of the 687") as caught:
        corpus_audio.read_audio(bytes(content), 16_000, "a.flac")
    assert caught.value.reason == "cut off"


@pytest.mark.parametrize(("format", "reason"), [("MP3", "cut off"), ("FLAC", "unreadable audio")])
def test_a_file_that_was_cut_off_is_not_taken_for_whole(format, reason):
    file = io.BytesIO()
    soundfile.write(file, tiny_model.speech(2.0), 16_000, format=format)
    whole = file.getvalue()
    assert len(corpus_audio.read_audio(whole, 16_000, "a")) == 32_000
    with pytest.raises(UnusableAudioError) as caught:
        corpus_audio.read_audio(whole[: len(whole) // 2], 16_000, "a")
    assert caught.value.reason == reason


def streams(folder):
    """Files whose header says no length, though they are whole, with their samples."""
    content = (CASES / "header_length_0.wav").read_bytes()
    samples = np.frombuffer(content[44:], np.int16)
    yield folder / "never_closed.wav", content, samples
    yield folder / "infinite.wav", content[:4] + b"\xff" * 4 + content[8:40] + b"\xff" * 4 + content[44:], samples
    write(folder / "known.flac", samples)
    flac = bytearray((folder / "known.flac").read_bytes())
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)  # `flac -` to a pipe cannot go back to say how many samples there are
    yield folder / "unknown.flac", bytes(flac), samples


def test_streams_that_were_never_closed_are_read_to_their_end(tmp_path):
    for path, content, samples in streams(tmp_path):
        path.write_bytes(content)
        for source, name in ((path, None), (str(path), None), (content, "name")):
            np.testing.assert_array_equal(corpus_audio.read_audio(source, 16_000, name), samples / np.float32(32768))
        assert corpus_audio.audio_lengths([path], 16_000) == [len(samples)], path
        assert corpus_audio.audio_length(path, 24_000) == -(-len(samples) * 3 // 2)


def test_files_of_phones_are_as_long_as_their_sound(tmp_path):
    pytest.importorskip("av", reason="pip install 'spark-jax[av]'")
    path = CASES / "recording.m4a"
    samples = corpus_audio.read_audio(path, 16_000)
    assert len(samples) > 16_000 and np.abs(samples).max() > 0.05
    np.testing.assert_array_equal(corpus_audio.read_audio(path.read_bytes(), 16_000, "a.m4a"), samples)
    assert corpus_audio.audio_lengths([path], 16_000) == [len(samples)]
    (tmp_path / "half.m4a").write_bytes(path.read_bytes()[:300])
    with pytest.raises(UnusableAudioError, match="half.m4a: not readable as MPEG-4") as caught:
        corpus_audio.read_audio(tmp_path / "half.m4a", 16_000)
    assert caught.value.reason == "unreadable audio"


def test_a_decoder_that_is_missing_has_a_reason_of_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    [fault] = corpus_audio.audio_lengths([CASES / "recording.m4a"], 16_000)
    assert fault.reason == "no decoder" and 'pip install "spark-jax[av]"' in str(fault)
