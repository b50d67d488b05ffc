"""Recordings as people bring them, by the commands: silent channels, silence, streams, phones, noise, anything."""

import dataclasses
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import anything, tiny_model

from spark_jax.cli import main as cli
from spark_jax.cli import speech
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.text_config import TextConfig

CASES = Path(__file__).parents[1] / "assets" / "cases"


@pytest.fixture(scope="module")
def tts(tiny_model_directory):
    return SparkTTS.load(tiny_model_directory, ("bicodec",))


@pytest.fixture
def run(tts, tmp_path, monkeypatch, capfd):
    """Runs a command in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speech, "_load", lambda *_, **__: tts)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        captured = capfd.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def write(name: str, samples: np.ndarray, rate: int = 16000) -> str:
    soundfile.write(name, samples, rate)
    return name


def voice_of(run, name: str) -> tuple[list[int], str]:
    """The global ids of a recording and what was said on standard error."""
    code, _, errors = run("voice", name, "-o", "v.json")
    assert code == 0, errors
    return json.loads(Path("v.json").read_text())["global_ids"], errors


def fails(run, *arguments) -> str:
    before = sorted(os.listdir())
    code, _, errors = run(*arguments)
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert sorted(os.listdir()) == before
    return errors


def test_the_channel_that_speaks(run):
    samples = tiny_model.speech(1.0)
    expected, errors = voice_of(run, write("mono.wav", samples))
    assert errors == ""
    silent = samples * 0
    for name, channels, message in (
        ("left.wav", [silent, samples], "channel 1 is silent and channel 2 is not: channel 2 of 2 is taken"),
        ("third.flac", [silent] * 2 + [samples] + [silent] * 3, "channel 3 of 6 is taken"),
        ("faint.flac", [samples[::-1] * 0.05, samples], "channel 1 is 26 dB below channel 2: channel 2 of 2 is taken"),
    ):
        ids, errors = voice_of(run, write(name, np.stack(channels, axis=1)))
        assert ids == expected and errors.startswith(f"warning: {name}: ") and message in errors
        assert errors.count("\n") == 1
    for channels in ([samples, silent], [samples, samples[::-1] * 5], [samples, *[silent] * 5]):
        ids, errors = voice_of(run, write("first.wav", np.stack(channels, axis=1)))
        assert ids == expected and errors == ""
    assert "the audio is silent" in fails(run, "voice", write("none.wav", np.zeros((16000, 6))), "-o", "no.json")
    ids, errors = voice_of(run, str(CASES / "left_silent.wav"))
    assert ids == voice_of(run, write("right.wav", soundfile.read(CASES / "left_silent.wav")[0][:, 1]))[0]
    assert "channel 2 of 2 is taken" in errors


def test_the_clip_starts_where_speech_starts(run):
    samples, rate = soundfile.read(CASES / "lead7s_silence.flac")
    first = np.flatnonzero(samples.reshape(-1, 320).std(axis=1) > 1e-3)[0]  # of frames of 20 ms
    assert first >= 7 * 50
    expected = voice_of(run, write("cut.flac", samples[(first - 5) * 320 :]))[0]
    assert voice_of(run, str(CASES / "lead7s_silence.flac")) == (expected, "")
    noise = np.random.default_rng(0).standard_normal(7 * rate)
    clicked = np.zeros(7 * rate)
    clicked[1000:1010] = 0.5  # the button
    stereo = np.stack([np.zeros(len(samples)), samples], axis=1)
    for name, spoiled in (
        ("hiss.flac", np.concatenate([noise * 5e-4, samples[7 * rate :]])),
        ("click.flac", np.concatenate([clicked, samples[7 * rate :]])),
        ("right.flac", stereo),
    ):
        ids, _ = voice_of(run, write(name, spoiled))
        assert np.mean(np.array(ids) == expected) > 0.5, name
        assert ids != voice_of(run, write("silence.flac", np.concatenate([noise[:96000] * 5e-4, samples[-1600:]])))[0]


def test_a_stream_that_was_never_closed(run):
    content = (CASES / "header_length_0.wav").read_bytes()
    samples = np.frombuffer(content[44:], np.int16)
    expected = voice_of(run, write("closed.wav", samples))[0]
    Path("infinite.wav").write_bytes(content[:4] + b"\xff" * 4 + content[8:40] + b"\xff" * 4 + content[44:])
    Path("listed.wav").write_bytes(content[:36] + b"LIST\4\0\0\0INFO" + content[36:])
    Path("with_length_of_the_riff.wav").write_bytes(content[:4] + b"\x24\0\0\0" + content[8:])
    for name in (str(CASES / "header_length_0.wav"), "infinite.wav", "listed.wav", "with_length_of_the_riff.wav"):
        assert voice_of(run, name) == (expected, ""), name
    soundfile.write("known.flac", samples, 16000)
    flac = bytearray(Path("known.flac").read_bytes())
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)  # `flac -` to a pipe cannot go back to say how many samples there are
    Path("unknown.flac").write_bytes(flac)
    assert voice_of(run, "unknown.flac") == (expected, "")
    Path("tags.wav").write_bytes(content[:44] + b"LIST\4\0\0\0INFO")
    assert "tags.wav: the audio is empty" in fails(run, "voice", "tags.wav", "-o", "no.json")


def test_absurd_headers_ask_for_no_memory(run):
    content = bytearray((CASES / "header_length_0.wav").read_bytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for rate in (0, 1, 3999, 768_001, 2**31 - 1, 2**32 - 1):
        content[24:28] = rate.to_bytes(4, "little")
        Path("rate.wav").write_bytes(content)
        fails(run, "voice", "rate.wav", "-o", "no.json")
    soundfile.write("true.flac", tiny_model.speech(0.5), 16000)
    flac = bytearray(Path("true.flac").read_bytes())
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4  # 49 days
    Path("long.flac").write_bytes(flac)
    assert run("voice", "long.flac", "-o", "v.json")[0] in (0, 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_the_files_of_phones_and_browsers(run):
    pytest.importorskip("av", reason="pip install 'spark-jax[av]'")
    import av

    assert voice_of(run, str(CASES / "recording.m4a"))[1] == ""
    samples = (tiny_model.speech(2.0) * 32767).astype(np.int16)[None]
    for name, codec, rate in (("a.webm", "libopus", 48000), ("a.mp4", "aac", 16000), ("a.aac", "aac", 16000)):
        with av.open(name, "w", format="adts" if name == "a.aac" else None) as container:
            stream = container.add_stream(codec, rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 16000
            resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate, frame_size=stream.frame_size)
            for piece in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        assert voice_of(run, name)[1] == "", name
    for name in ("recording.m4a", "a.webm"):
        shutil.copy(CASES / name if name in os.listdir(CASES) else name, "whole")
        Path("part.bin").write_bytes(Path("whole").read_bytes()[:300])
        assert "part.bin: not readable as" in fails(run, "voice", "part.bin", "-o", "no.json")


def test_a_decoder_that_is_missing_is_named(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    message = fails(run, "voice", str(CASES / "recording.m4a"), "-o", "no.json")
    assert "recording.m4a: MPEG-4 (m4a, mp4) is not read without a decoder: package 'av' is not installed" in message
    assert 'pip install "spark-jax[av]"' in message


def test_a_long_recording_costs_no_more_than_its_clip(run, monkeypatch):
    samples = tiny_model.speech(30.0)
    expected, _ = voice_of(run, write("short.flac", samples))
    long = write("long.flac", np.tile(samples, 20))
    read, original = [], soundfile.SoundFile.read

    def count(self, frames=-1, **options):
        read.append(len(block := original(self, frames, **options)))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    assert voice_of(run, long) == (expected, "")
    assert sum(read) < 2 * 50 * 16000  # of 600 s: looked at, and read
    monkeypatch.setattr(speech, "_load", None)
    message = "long.flac: longer than 30 s, the most that a transcript may go with: cut both, or leave the"
    assert message in fails(run, "voice", long, "--transcript", "What it says.", "-o", "no.json")
    assert message in fails(run, "synthesize", "Hi.", "--reference", long, "--transcript", "It.", "-o", "no.wav")


def test_what_holds_no_voice_is_told(run):
    rng = np.random.default_rng(0)
    time = np.arange(48000) / 16000
    for name, samples in (
        ("white.wav", 0.1 * rng.standard_normal(48000)),
        ("quiet.wav", 0.001 * rng.standard_normal(48000)),
        ("brown.wav", 0.3 * np.cumsum(n := rng.standard_normal(48000)) / np.abs(np.cumsum(n)).max()),
        ("hum.wav", 0.2 * np.sin(2 * np.pi * 50 * time)),
        ("tone.wav", 0.2 * np.sin(2 * np.pi * 220 * time)),
    ):
        errors = voice_of(run, write(name, samples))[1]
        assert errors.startswith(f"warning: {name}: no voice is heard in it (") and errors.count("\n") == 1


def test_a_model_of_one_speaker_says_that_a_voice_changes_nothing(run, tts, monkeypatch):
    name = write("ref.wav", tiny_model.speech(1.0))
    expected, _ = voice_of(run, name)
    monkeypatch.setattr(tts, "config", dataclasses.replace(tts.config, text=TextConfig(controls=())))
    ids, errors = voice_of(run, name)
    assert ids == expected and errors.count("\n") == 1
    assert errors.startswith("warning: ref.wav: the model has not learned to follow a reference")


def test_names_that_are_not_utf8(run):
    name = os.fsdecode(b"voix_\xe9\xff.wav")
    soundfile.write("ref.wav", tiny_model.speech(1.0), 16000)
    os.rename("ref.wav", name)
    assert voice_of(run, name)[1] == ""
    Path(name).write_bytes(b"none")
    assert "not readable as audio" in fails(run, "voice", name, "-o", "no.json")


def test_any_bytes_are_a_voice_or_one_line(run):
    """The rest of 200, and texts, in `test_anything`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faults, kept = anything.keep_voices(range(40), spoken=False)
    assert faults == {} and kept > 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
