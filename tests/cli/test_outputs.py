"""Where results go: formats, standard output, devices, pipes, links, long names, full disks."""

import gc
import io
import json
import os
import resource
import stat
import threading

import pytest
import soundfile
from helpers import tiny_model

from spark_jax.cli import main as cli
from spark_jax.cli import speech
from spark_jax.inference.synthesize import SparkTTS

NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def tts(tiny_model_directory):
    return SparkTTS.load(tiny_model_directory, ("bicodec",))


@pytest.fixture
def folder(tts, tmp_path, monkeypatch):
    """The current folder, with tokens and a recording."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speech, "_load", lambda *_, **__: tts)
    ids = {"sample_rate": 16000, "global_ids": [0] * 32, "semantic_ids": list(range(50))}
    (tmp_path / "t.json").write_text(json.dumps(ids))
    soundfile.write(tmp_path / "ref.wav", tiny_model.speech(1.0), 16000)


@pytest.fixture
def run(folder, capfd):
    """Runs a command; gives exit code, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        captured = capfd.readouterr()
        # capfd takes bytes for text; those of audio come back as they were.
        return stop.value.code or 0, captured.out, captured.err

    return run


def fails(run, *arguments) -> str:
    before = sorted(os.listdir())
    code, _, errors = run(*arguments)
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert sorted(os.listdir()) == before
    return errors


@pytest.mark.parametrize(
    ("name", "format", "subtype"),
    [
        ("out.wav", "WAV", "PCM_16"),
        ("out.WAV", "WAV", "PCM_16"),
        ("out", "WAV", "PCM_16"),
        ("out.flac", "FLAC", "PCM_16"),
        ("out.ogg", "OGG", "VORBIS"),
        ("out.oga", "OGG", "VORBIS"),
        ("out.mp3", "MP3", "MPEG_LAYER_III"),
        ("out.Mp3", "MP3", "MPEG_LAYER_III"),
        ("out.opus", "OGG", "OPUS"),
    ],
)
def test_the_extension_is_the_format(run, name, format, subtype):
    code, out, errors = run("decode", "t.json", "-o", name)
    assert (code, errors) == (0, "") and out == f"{name}: 1.00 s\n"
    found = soundfile.info(name)
    assert (found.format, found.subtype, found.samplerate) == (format, subtype, 16000)
    assert abs(found.frames - 16000) < 1600


@pytest.mark.parametrize("command", [("decode", "t.json"), ("synthesize", "Hello.")])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("-o", "out.mp4"),
            "out.mp4: extension '.mp4' is no format of audio, expected one of wav, flac, ogg, mp3, opus",
        ),
        (("-o", "out.wav.bak"), "out.wav.bak: extension '.bak' is no"),
        (("-o", "out.json"), "out.json: extension '.json' is no"),
        (("-o", "out.wav", "--format", "aiff"), "format 'aiff' is unknown, expected one of wav, flac"),
        (("-o", "-", "--format", ""), "format '' is unknown"),
    ],
)
def test_what_is_no_format_is_refused_before_anything_is_loaded(run, monkeypatch, command, options, message):
    monkeypatch.setattr(speech, "_load", None)
    assert message in fails(run, *command, *options)


def test_a_format_by_name(run):
    assert run("decode", "t.json", "-o", "out.dat", "--format", "FLAC")[0] == 0
    assert soundfile.info("out.dat").format == "FLAC"


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
@pytest.mark.parametrize(("format", "expected"), [((), "WAV"), (("--format", "flac"), "FLAC")])
def test_standard_output_holds_the_audio_alone(folder, capfdbinary, name, format, expected):
    before = sorted(os.listdir())
    with pytest.raises(SystemExit) as stop:
        cli.main(["decode", "t.json", "-o", name, *format])
    out, errors = capfdbinary.readouterr()
    assert not stop.value.code
    found = soundfile.info(io.BytesIO(out))
    assert (found.format, found.frames) == (expected, 16000)
    assert errors == f"{'/dev/stdout' if name == '-' else name}: 1.00 s\n".encode()
    assert sorted(os.listdir()) == before


def test_a_voice_on_standard_output(run):
    code, out, errors = run("voice", "ref.wav", "-o", "-")
    assert code == 0 and json.loads(out)["format"] == "spark-jax-voice"
    assert errors == "/dev/stdout: the voice of ref.wav\n" and not os.path.exists("-")


def test_what_standard_output_is_sent_to_is_not_emptied(run, tmp_path):
    """As in `{ echo first; spark-jax decode … -o -; } > file`: the shell's file goes on where it was."""
    saved = os.dup(1)
    try:
        with (tmp_path / "both").open("wb", buffering=0) as file:
            file.write(b"first")
            os.dup2(file.fileno(), 1)
            assert run("decode", "t.json", "-o", "/dev/stdout")[0] == 0
            file.write(b"last")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    content = (tmp_path / "both").read_bytes()
    assert content[:9] == b"firstRIFF" and content[-4:] == b"last"


def test_a_closed_pipe_is_one_line(run, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    try:
        os.dup2(writer, 1)
        assert "/dev/stdout: cannot be written (Broken pipe)" in fails(run, "decode", "t.json", "-o", "-")
        gc.collect()  # on Python 3.12, a view of the audio in the error's cycle ended the process here
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)


def test_a_pipe_and_a_device_are_written_through(run, tmp_path):
    received = []
    for name in ("pipe", "pipe.mp3"):
        os.mkfifo(name)
        reader = threading.Thread(target=lambda name=name: received.append((tmp_path / name).read_bytes()))
        reader.start()
        assert run("decode", "t.json", "-o", name)[0] == 0
        reader.join(timeout=30)
        assert stat.S_ISFIFO(os.stat(name).st_mode)
    assert [soundfile.info(io.BytesIO(content)).format for content in received] == ["WAV", "MP3"]
    for arguments in (("decode", "t.json"), ("voice", "ref.wav")):
        assert run(*arguments, "-o", os.devnull)[0] == 0
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_link_is_followed(run, tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("old.flac", "new.flac"):
        target, link = tmp_path / "there" / name, tmp_path / f"link_{name}"
        link.symlink_to(f"there/{name}")
        if name == "old.flac":
            target.write_text("old")
        assert run("decode", "t.json", "-o", link.name)[0] == 0
        assert link.is_symlink() and not target.is_symlink() and soundfile.info(target).format == "FLAC"
    (tmp_path / "lost.wav").symlink_to("nowhere/lost.wav")
    assert "nowhere does not exist" in fails(run, "decode", "t.json", "-o", "lost.wav")


def test_names_up_to_the_file_systems_limit(run):
    for name in ("x" * 246 + ".wav", "x" * 250, "é" * 125 + ".opus", "y" * 251 + ".mp3"):
        assert run("decode", "t.json", "-o", name)[0] == 0 and os.path.getsize(name)
    assert run("voice", "ref.wav", "-o", "v" * 250 + ".json")[0] == 0
    for command in (("decode", "t.json"), ("voice", "ref.wav"), ("encode", "ref.wav")):
        assert "cannot be written (File name too long)" in fails(run, *command, "-o", "z" * 252 + ".wav")


def test_a_name_that_is_not_utf8(run):
    code, out, errors = run("decode", "t.json", "-o", f"{NOT_UTF8}.flac")
    assert (code, errors) == (0, "") and out == "caf\\udce9.flac: 1.00 s\n"
    assert b"caf\xe9.flac" in os.listdir(b".")
    assert run("voice", "ref.wav", "-o", f"{NOT_UTF8}.json")[0] == 0
    message = fails(run, "decode", "t.json", "-o", f"{NOT_UTF8}.txt")
    assert message.startswith("error: caf") and ".txt: extension '.txt' is no format" in message


def test_a_full_disk_is_one_line_and_leaves_nothing(run):
    assert "/dev/full: cannot be written (No space left on device)" in fails(run, "decode", "t.json", "-o", "/dev/full")
    assert "/dev/full: cannot be written" in fails(run, "voice", "ref.wav", "-o", "/dev/full")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the same to a file as a disk that is full
    try:
        message = fails(run, "decode", "t.json", "-o", "out.wav")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "out.wav: cannot be written (File too large)" in message
