"""The command line in this process, so that JAX is imported once; what concerns the process itself, in others."""

import functools
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from helpers import tiny_model

from spark_jax.cli import main as cli
from spark_jax.cli import speech
from spark_jax.errors import SparkError
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.model_directory.parameters import PARTS
from spark_jax.shared.distributed import HEARTBEAT_SECONDS


@pytest.fixture(scope="module")
def load():
    """Loads each model once and whole for all tests; what a command compiled, the next one finds."""
    original = speech._load
    whole = functools.cache(lambda directory: original(directory, *PARTS))
    return lambda directory, *parts, **_: whole(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Inputs, good and bad, with a voice and tokens made by the commands themselves."""
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="module", autouse=True)
def inputs(folder, tiny_model_directory):
    speech = tiny_model.speech(1.0)
    for name, samples in {
        "ref.wav": speech,
        "stereo.flac": np.stack([speech, speech * 0], axis=1),
        "silent.wav": speech * 0,
        "short.wav": speech[:1500],
        "empty.wav": speech[:0],
    }.items():
        soundfile.write(folder / name, samples, 16000)
    speech[777] = np.nan
    soundfile.write(folder / "nan.wav", speech, 16000, subtype="FLOAT")
    (folder / "text.wav").write_text("this is no audio")
    (folder / "broken.json").write_text("{")
    (folder / "latin1.txt").write_bytes("café.".encode("latin-1"))
    (folder / "empty.txt").write_text("")
    (folder / "taken").mkdir()


@pytest.fixture
def run(folder, load, tiny_model_directory, capsys, monkeypatch):
    """Runs a command in the folder; "MODEL" stands for the tiny model. Gives exit code, output, errors."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(speech, "_load", load)

    def run(*arguments):
        arguments = [str(tiny_model_directory) if argument == "MODEL" else argument for argument in arguments]
        with pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def fails(run, folder):
    """Runs a command that must fail well: exit code 2, one line of error, no new file. Gives the line."""

    def fails(*arguments):
        before = sorted(folder.rglob("*"))
        code, _, errors = run(*arguments)
        assert code == 2, errors
        assert errors.startswith("error: ") and errors.count("\n") == 1 and errors.endswith("\n")
        assert sorted(folder.rglob("*")) == before
        return errors

    return fails


SPEAK = ("synthesize", "Hello.", "-o", "out.wav", "--model", "MODEL")
CREATE = (*SPEAK, "--gender", "female", "--max-seconds", "0.04")


def test_encode_and_decode(run, folder):
    code, out, errors = run("encode", "ref.wav", "-o", "tokens.json", "--model", "MODEL")
    assert (code, errors) == (0, "")
    tokens = json.loads((folder / "tokens.json").read_text())
    assert sorted(tokens) == ["global_ids", "sample_rate", "semantic_ids"]
    assert (len(tokens["global_ids"]), len(tokens["semantic_ids"]), tokens["sample_rate"]) == (32, 49, 16000)
    assert "32 global and 49 semantic tokens" in out
    assert run("decode", "tokens.json", "-o", "decoded.wav", "--model", "MODEL")[0] == 0
    decoded = soundfile.info(folder / "decoded.wav")
    assert (decoded.frames, decoded.samplerate, decoded.channels) == (49 * 320, 16000, 1)
    assert run("encode", "stereo.flac", "-o", "stereo.json", "--model", "MODEL")[0] == 0
    assert len(json.loads((folder / "stereo.json").read_text())["semantic_ids"]) == 49


def test_a_made_up_voice_warns_at_its_limit(run, folder):
    """A random model seldom ends within two tokens."""
    code, out, errors = run(*CREATE, "--greedy")
    assert code == 0
    assert errors == "warning: the speech has no end: cut off after 0.04 s\n"
    assert out.startswith("out.wav: 0.04 s of speech")
    assert soundfile.info(folder / "out.wav").frames == 640


@pytest.mark.extended
def test_a_stream_is_the_same_speech(run, folder):
    options = (*SPEAK[:2], "--model", "MODEL", "--gender", "female", "--max-seconds", "0.5", "--retries", "0")
    assert run(*options, "-o", "out.wav", "--subtitles", "out.srt")[0] == 0
    code, out, _ = run(*options, "--stream", "-o", "grown.wav", "--subtitles", "grown.json", "--latency", "exact")
    assert code == 0 and "grown.wav: " in out
    whole, grown = (soundfile.read(folder / name, dtype="int16")[0] for name in ("out.wav", "grown.wav"))
    assert len(whole) == len(grown) and np.max(np.abs(whole.astype(int) - grown)) <= 1
    [cue] = json.loads((folder / "grown.json").read_text())
    assert cue["text"] == "Hello." and cue["end"] == len(grown) / 16000
    assert "Hello." in (folder / "out.srt").read_text()
    assert run(*options, "--stream", "-o", "grown.pcm")[0] == 0
    assert (folder / "grown.pcm").read_bytes() == grown.tobytes()


def test_a_kept_voice_speaks(run, folder):
    arguments = ("voice", "ref.wav", "--transcript", "Good morning.", "--model", "MODEL")
    assert run(*arguments, "-o", "voice.json")[0] == 0
    assert json.loads((folder / "voice.json").read_text())["transcript"] == "Good morning."
    limits = ("--max-seconds", "0.5", "--greedy")
    assert run(*SPEAK, "--voice", "voice.json", *limits)[0] == 0
    from_voice = (folder / "out.wav").read_bytes()
    reference = ("--reference", "ref.wav", "--transcript", "Good morning.")
    assert run(*SPEAK, *reference, *limits)[0] == 0
    assert (folder / "out.wav").read_bytes() == from_voice


def test_texts_come_from_files_and_from_standard_input(run, folder, monkeypatch):
    """Paragraphs and byte order marks and all; the same speech as from the command line."""
    (folder / "text.txt").write_bytes("\ufeffHello.\r\n".encode())
    (folder / "-5 degrees.txt").write_text("Hello.")
    assert run(*CREATE)[0] == 0
    expected = (folder / "out.wav").read_bytes()
    options = CREATE[2:]
    for file in ("text.txt", "./-5 degrees.txt", "-"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf Hello. \n"), "ascii"))
        assert run("synthesize", "--text-file", file, *options)[0] == 0
        assert (folder / "out.wav").read_bytes() == expected


def test_a_text_that_begins_with_a_dash_comes_last(run):
    assert run(*CREATE[:1], *CREATE[2:], "--", "-5 degrees")[0] == 0


def test_pauses_and_warnings_of_a_text(run, folder):
    text = "[pause 0.5s]Hello.<break time='250ms'/><b>Hello.</b>"
    code, _, errors = run("synthesize", text, *CREATE[2:-1], "0.1")
    assert code == 0
    assert errors.startswith("warning: text: tags are not read: <b>\nwarning: ") and errors.count("\n") == 2
    samples, _ = soundfile.read(folder / "out.wav")
    assert not samples[:8000].any() and samples[8000:].any() and len(samples) >= 8000 + 4000


@pytest.mark.extended
def test_the_codec_works_without_the_llm(folder, tiny_model_directory, monkeypatch):
    """Each command asks for the parts it needs, and works with no more than them."""
    monkeypatch.chdir(folder)
    asked, original = [], SparkTTS.load.__func__

    def load(cls, directory, parts, **options):
        asked.append(original(cls, directory, parts, **options))
        assert tuple(asked[-1]._variables) == parts
        return asked[-1]

    monkeypatch.setattr(SparkTTS, "load", classmethod(load))
    for command in ("encode", "ref.wav", "tokens.json"), ("decode", "tokens.json", "out.wav"):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command[:2], "-o", command[2], "--model", str(tiny_model_directory)])
        assert not stop.value.code
        with pytest.raises(SparkError, match="this needs llm"):
            asked[-1].synthesize("Hello.", gender="female")
    assert [tuple(tts._variables) for tts in asked] == [("bicodec", "wav2vec2"), ("bicodec",)]
    with pytest.raises(SparkError, match="this needs wav2vec2, loaded are only bicodec"):
        asked[-1].encode(tiny_model.speech(1.0))


def test_info(run):
    code, out, _ = run("info", "MODEL")
    assert code == 0
    for fact in ("bicodec", "wav2vec2", "llm", "float32", "64 semantic codes, 50 tokens", "voices: none"):
        assert fact in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SPEAK, "--stream", "--format", "wav"), "--format does not go with --stream"),
        ((*SPEAK, "--stream", "--latency", "none"), "latency is 'none', expected exact or low"),
        (("synthesize", "Hello.", "-o", "out.mp3", "--stream"), "out.mp3: a stream is written as .wav or .pcm"),
        ((*SPEAK, "--subtitles", "out.txt"), "out.txt: expected the name of a file that ends with .srt, .vtt, .json"),
        ((*SPEAK, "--retries", "-1"), "retries is -1, expected a whole number from 0 to 100"),
        (("synthesize", "", "-o", "out.wav"), "text is '', expected something to say"),
        (("synthesize", " \n", "-o", "out.wav"), "text is ' \\n'"),
        ((*SPEAK, "--voice", "v.json", "--reference", "ref.wav"), "voice and reference exclude each other"),
        ((*SPEAK, "--gender", "male", "--reference", "ref.wav"), "reference and gender exclude each other"),
        ((*SPEAK, "--transcript", "Hi."), "transcript needs a reference"),
        ((*SPEAK, "--reference", "ref.wav", "--transcript", ""), "transcript is '', expected what the reference"),
        ((*SPEAK, "--gender", "robot"), "gender 'robot' is unknown, expected female or male"),
        ((*SPEAK, "--gender", "male", "--pitch", "loud"), "pitch level 'loud' is unknown, expected one of very_low"),
        ((*SPEAK, "--gender", "male", "--speed", "5"), "speed level '5' is unknown"),
        ((*SPEAK, "--speed", "high"), "speed needs a gender"),
        ((*SPEAK, "--pitch-hz", "200"), "pitch_hz and syllables_per_second go together"),
        (
            (*CREATE, "--pitch", "low", "--pitch-hz", "200", "--syllables-per-second", "4"),
            "pitch and pitch_hz exclude each other",
        ),
        ((*CREATE, "--pitch-hz", "nan", "--syllables-per-second", "4"), "pitch_hz is nan, expected a number above 0"),
        ((*CREATE, "--temperature", "0"), "temperature is 0.0, expected a number above 0"),
        ((*CREATE, "--temperature", "inf"), "temperature is inf, expected a finite number"),
        ((*CREATE, "--top-k", "0"), "top_k is 0, expected a whole number from 1"),
        ((*CREATE, "--top-p", "1.5"), "top_p is 1.5, expected a number above 0 and at most 1"),
        ((*CREATE, "--seed", "-1"), "seed is -1, expected a whole number from 0 to 4294967295"),
        ((*SPEAK, "--gender", "female", "--max-seconds", "0"), "max_seconds is 0.0, expected a number above 0"),
        ((*CREATE, "--pitch-hz", "1e6", "--syllables-per-second", "4"), "expected a number above 0 and at most 1000"),
        ((*CREATE, "--normalize", "maybe"), "normalize is 'maybe', expected one of auto, on, off"),
        (("synthesize", "...", "-o", "out.wav"), "text is '...', expected something to say: no letter or number"),
        (("synthesize", "\u200b", "-o", "out.wav"), "text is '\\u200b', expected something to say"),
        (("synthesize", "\U0001f600?", "-o", "out.wav"), "expected something to say"),
        (("synthesize", "ab\udcff", "-o", "out.wav"), "text is not Unicode text (bytes that are not UTF-8?)"),
        (
            (*SPEAK, "--reference", "ref.wav", "--transcript", "caf\udce9"),
            "transcript is not Unicode text (bytes that are not UTF-8?): 'caf\\udce9'",
        ),
        (("voice", "ref.wav", "-o", "v.json", "--transcript", "caf\udce9"), "transcript is not Unicode text"),
        (("voice", "ref.wav", "-o", "v.json", "--transcript", " ... "), "transcript is ' ... ', expected what the ref"),
        (
            ("synthesize", "-5 degrees", "-o", "out.wav"),
            "No such option: -5; a text that begins with a dash comes",
        ),
        (("synthesize", "--what is it", "-o", "out.wav"), "begins with a dash comes after --: spark-jax synthesize"),
        (
            ("synthesize", "-on the road"),
            "no text: give one of TEXT and --text-file FILE; a text that",
        ),
        ((*SPEAK, "--text-file", "text.txt"), "a TEXT and a --text-file: give one"),
        (("synthesize", "-o", "out.wav", "--text-file", "absent.txt"), "absent.txt: cannot be read (No such file"),
        (("synthesize", "-o", "out.wav", "--text-file", "taken"), "taken: cannot be read (Is a directory)"),
        (("synthesize", "-o", "out.wav", "--text-file", "latin1.txt"), "latin1.txt: not UTF-8 text (byte 3:"),
        (("synthesize", "-o", "out.wav", "--text-file", "empty.txt"), "text is '', expected something to say"),
        ((*CREATE, "--top-k", "many"), "Invalid value for '--top-k'"),
        ((*CREATE, "--louder"), "No such option: --louder"),
        (("synthesize", "Hello."), "Missing option '--output' / '-o'"),
        (("speak",), "No such command 'speak'"),
    ],
)
def test_a_bad_request_is_told_before_anything_is_loaded(fails, monkeypatch, arguments, message):
    monkeypatch.setattr(speech, "_load", None)
    assert message in fails(*arguments)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("absent/out.wav", "absent/out.wav: the folder absent does not exist"),
        ("ref.wav/out.wav", "ref.wav/out.wav: the folder ref.wav does not exist"),
        ("taken", "taken: is a folder, expected the name of a file"),
        ("/proc/out.wav", "/proc/out.wav: the folder /proc cannot be written"),
    ],
)
@pytest.mark.parametrize("command", ["synthesize", "voice", "encode", "decode"])
def test_an_output_is_checked_before_anything_is_loaded(fails, monkeypatch, command, output, message):
    monkeypatch.setattr(speech, "_load", None)
    assert message in fails(command, "ref.wav", "-o", output)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.wav", "absent.wav: no such file"),
        ("taken", "taken: is not a file"),
        ("text.wav", "text.wav: not readable as audio"),
        ("silent.wav", "silent.wav: the audio is silent"),
        ("short.wav", "short.wav: 0.094 s of audio, expected at least 0.1 s"),
        ("empty.wav", "empty.wav: the audio is empty"),
        ("nan.wav", "nan.wav: 1 of 16000 samples are NaN or infinite"),
    ],
)
def test_a_bad_recording(fails, name, message):
    assert message in fails("voice", name, "-o", "v.json", "--model", "MODEL")
    assert message in fails("encode", name, "-o", "t.json", "--model", "MODEL")
    assert message in fails(*SPEAK, "--reference", name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "bad.json: not valid JSON"),
        ('{"global_ids": [], "semantic_ids": [], "sample_rate": 16000}', "bad.json: global_ids is empty"),
        ('{"global_ids": [1], "semantic_ids": [1], "sample_rate": 16000}', "bad.json: global_ids has 1 ids"),
        ('{"semantic_ids": [1], "sample_rate": 16000}', "bad.json: key global_ids is missing"),
    ],
)
def test_bad_tokens(fails, folder, content, message):
    (folder / "bad.json").write_text(content)
    assert message in fails("decode", "bad.json", "-o", "out2.wav", "--model", "MODEL")
    voice_message = message if content == "{" else "bad.json: not a voice file"
    assert voice_message in fails(*SPEAK, "--voice", "bad.json")


def test_a_model_without_a_default_voice(fails):
    assert "the model has no default voice: give a voice, a reference or a gender" in fails(*SPEAK)


@pytest.mark.parametrize("command", [("info", "taken"), (*SPEAK[:4], "--gender", "male", "--model", "taken")])
def test_what_is_no_model_directory(fails, command):
    assert "config.json: cannot be read" in fails(*command)


def test_convert_refuses_what_is_not_the_official_layout(fails):
    assert "config.yaml: cannot be read" in fails("convert", "taken", "converted")
    assert "dtype is 'float8'" in fails("convert", "taken", "converted", "--dtype", "float8")
    assert "no such directory" in fails("convert", "nowhere", "converted")
    assert "parts are voice, expected" in fails("convert", "taken", "converted", "--parts", "voice")


def test_export_and_convert_back(run, fails, folder):
    code, out, errors = run("export", "MODEL", "exported", "--dtype", "bfloat16", "--parts", "llm")
    assert (code, errors) == (0, "") and out.startswith("exported: llm 0.2 MB, in ")
    assert [path.name for path in (folder / "exported").iterdir()] == ["LLM"]
    code, out, errors = run("convert", "exported", "again", "--dtype", "bfloat16", "--parts", "llm")
    assert (code, errors) == (0, "") and "parameters" in out
    assert "bfloat16" in run("info", "again")[1]
    assert "exists already" in fails("export", "MODEL", "exported")
    assert "nowhere: no such directory" in fails("export", "MODEL", "more", "--llm", "nowhere")


HELP = [
    ((), "synthesize"),
    (("--version",), "0."),
    (("synthesize", "--help"), "--pitch-hz"),
    (("train", "--help"), f"Default: {HEARTBEAT_SECONDS}."),
    (("plan", "--help"), "--topology"),
    (("prepare",), "token-records"),
    (("evaluate",), "words"),
]
MISTAKES = [
    (("synthesize", "Hello.", "-o", "absent/out.wav"), "absent/out.wav: the folder absent does not exist"),
    (
        ("train", "llm", "tiny_lm", "-o", "run"),
        "tiny_lm: cannot be read (no such file); expected a YAML file or one",
    ),
    (("train", "voice", "tiny_llm", "-o", "run"), "'voice' is not one of 'llm', 'codec', 'ctc'"),
    (("train", "llm", "tiny_llm"), "Missing option '--output' / '-o'"),
    (("train", "llm", "tiny_llm", "-o", "run", "--profile", "5:3"), "--profile is '5:3', expected START:STOP"),
    (("plan", "tiny_lm", "--cpu-devices", "1"), "tiny_lm: cannot be read (no such file)"),
    (("plan", "tiny_llm"), "expected --topology or --cpu-devices"),
    (("plan", "tiny_llm", "--cpu-devices", "1", "--effort", "-2"), "--effort is -2.0, expected -1 to 0"),
    (("plan", "tiny_llm", "--cpu-devices", "1", "--mfu", "0"), "--mfu is 0.0, expected a number above 0"),
    (("plan", "tiny_llm", "--cpu-devices", "1", "--tokens", "1", "--hours-of-audio", "1"), "exclude each other"),
    (("prepare", "token-records", "nowhere.jsonl", "out", "--tokenizer", "bytes"), "nowhere.jsonl: no such file"),
    (("prepare", "audio-records", "nowhere", "out"), "nowhere/metadata.jsonl: no such file"),
    (
        ("prepare", "audio-records", "nowhere", "out", "--on-error", "ask"),
        "--on-error is 'ask', expected raise or skip",
    ),
    (("assemble", "out", "--wav2vec2", "a", "--bicodec", "b", "--llm", "c", "--tokens", "no"), "no: no such file"),
    (("evaluate", "words", "--text-file", "nowhere.txt"), "nowhere.txt: no such file"),
    (("evaluate", "words", "--measures", "beauty"), "measure 'beauty' is unknown"),
]

WITHOUT_JAX = """
import contextlib, io, json, sys
import spark_jax.cli.main as cli

answers = []
for arguments in json.load(sys.stdin):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            cli.main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
    slow = {'jax', 'flax', 'orbax', 'transformers', 'rich'} & set(sys.modules)
    answers.append((code, out.getvalue(), errors.getvalue(), sorted(slow)))
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def answer():
    """What commands answer in a fresh process, all in the same: exit code, output, errors, and slow imports so far."""
    commands = [arguments for arguments, _ in HELP + MISTAKES]
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX], input=json.dumps(commands), capture_output=True, text=True, timeout=60
    )
    return dict(zip(commands, json.loads(process.stdout), strict=True)).__getitem__


@pytest.mark.parametrize(("arguments", "expected"), HELP)
def test_help_and_version_answer_without_jax(answer, arguments, expected):
    code, out, errors, slow = answer(arguments)
    assert (code, errors, slow) == (0, "", [])
    assert expected in out


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_on_the_command_line_answer_without_jax(answer, arguments, message):
    code, out, errors, slow = answer(arguments)
    assert (code, out, slow) == (2, "", [])
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors


def test_the_process_ends_with_code_2_and_one_line(tmp_path):
    arguments = ["synthesize", "Hello.", "-o", str(tmp_path / "absent" / "out.wav")]
    process = subprocess.run(
        [sys.executable, "-m", "spark_jax.cli.main", *arguments], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2
    assert process.stderr == f"error: {arguments[-1]}: the folder {tmp_path / 'absent'} does not exist\n"
    assert process.stdout == ""
