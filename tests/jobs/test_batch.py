"""A batch with a model that speaks at once: lists, resume, failures, shares, and what is refused."""

import json
import os
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import tiny_model
from helpers.fake_speech import FakeTTS, audio

from spark_jax import sharding
from spark_jax.cli.main import main
from spark_jax.inference.engine import EngineSettings
from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.jobs import attempt as attempt_module
from spark_jax.jobs.folder import JobFolder
from spark_jax.jobs.lines import read_job, seed_of
from spark_jax.jobs.shards import read_input
from spark_jax.shared.folder_lock import lock_folder


@pytest.fixture
def tts(monkeypatch):
    fake = FakeTTS()
    monkeypatch.setattr(SparkTTS, "load", lambda *arguments, **options: fake)
    return fake


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "manifest.json"):
        (tmp_path / "model" / name).write_text("{}")
    monkeypatch.chdir(tmp_path)


def write(*jobs, name="jobs.jsonl"):
    lines = [job if isinstance(job, str) else json.dumps(job) for job in jobs]
    with open(name, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def some(count, **more):
    return [{"id": f"job-{number}", "text": f"Text {number}", **more} for number in range(count)]


def batch(*options, output="out"):
    with pytest.raises(SystemExit) as end:
        main(["batch", "jobs.jsonl", "-o", output, "--model", "model", "--slots", "8", *options])
    return end.value.code or 0


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def contents(output, seconds=False):
    """All that a batch has written; without the seconds that it took."""
    found = {}
    for folder_name, _, names in os.walk(output):
        for name in names:
            path = os.path.join(folder_name, name)
            if name == "manifest.jsonl" and not seconds:
                found[os.path.relpath(path, output)] = [record | {"seconds": None} for record in read(path)]
            elif not name.startswith(".lock"):
                with open(path, "rb") as file:
                    found[os.path.relpath(path, output)] = file.read()
    return found


def test_audio_and_lists(tts, capsys):
    bad = ["{", {"id": "job-1", "text": "again"}, {"id": "x", "text": "..."}, {"id": "y", "text": "impossible"}]
    write(*some(3), "", *bad, {"id": "a/b", "text": "With a seed", "seed": 5})
    assert batch("--shard-size", "4", "--transcripts") == 1
    records, errors = read("out/manifest.jsonl"), read("out/errors.jsonl")
    assert [record["id"] for record in records] == ["job-0", "job-1", "job-2", "a/b"]
    assert [(error["line"], error["id"]) for error in errors] == [(5, None), (6, "job-1"), (7, "x"), (8, "y")]
    assert errors[1]["reason"] == "id 'job-1' is given twice, first in line 2" and errors[3]["reason"] == "no room"
    [last] = records[3:]
    samples, rate = soundfile.read("out/" + last["file"])
    assert last["file"] == "audio/00002/a_b-c14cddc033f6.wav" and last["seed"] == 5 and last["line"] == 9
    assert (len(samples) / rate, len(samples)) == (last["duration"], 1100) and last["tokens"] == 11
    with open("out/audio/00002/a_b-c14cddc033f6.txt") as file:
        assert file.read() == "With a seed\n"
    assert sorted(os.listdir("out")) == [".lock", "audio", "batch.json", "errors.jsonl", "manifest.jsonl"]
    shown = capsys.readouterr()
    assert "out: 4 jobs spoken, 4 failed, 0.2 s of audio" in shown.out and shown.err == ""


def test_all_is_well_and_once_is_enough(tts):
    write(*some(5))
    assert batch() == 0 and len(tts.spoken) == 5
    before = contents("out", seconds=True)
    assert batch() == 0 and len(tts.spoken) == 5
    assert contents("out", seconds=True) == before


def test_a_killed_run_goes_on(tts, monkeypatch):
    """It is killed in the second shard; the file of one job and the journal of another are cut off."""
    write(*some(12))
    assert batch("--shard-size", "5", output="whole") == 0
    with monkeypatch.context() as patched:
        kill(patched, line=9)
        assert batch("--shard-size", "5") == 1
    attempt = next(name for name in os.listdir("out/.work") if name.startswith("00001"))  # the others have links to it
    with open(f"out/.work/{attempt}/journal.jsonl", "ab") as file:
        file.write(b'{"sizes": {}, "record": {"line"')
    kept = [entry["record"]["id"] for entry in attempt_module.read_journal(Path("out/.work", attempt))]
    with open(f"out/.work/{attempt}/{kept[0]}.wav", "ab") as file:
        file.truncate(100)
    tts.spoken.clear()
    assert batch("--shard-size", "5") == 0
    again = {text.replace("Text ", "job-") for text in tts.spoken}
    assert kept[0] in again and not again & set(kept[1:]) and len(kept) > 1
    assert not again & {f"job-{number}" for number in range(5)}
    assert contents("out") == contents("whole")


def kill(monkeypatch, line):
    """Nothing behind a line is kept any more, as if the process had ended."""
    keep = attempt_module.Attempt.keep

    def keep_or_die(self, job, *rest):
        if job.line > line:
            raise RuntimeError("killed")
        keep(self, job, *rest)

    monkeypatch.setattr(attempt_module.Attempt, "keep", keep_or_die)


def test_a_shard_that_fails_three_times_is_set_aside(tts, capsys):
    write(*some(4), {"id": "z", "text": "crash"}, *some(0), {"id": "w", "text": "fine"})
    assert batch("--shard-size", "2") == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "shard 2 (from line 5) failed, tried again: RuntimeError: out of memory"
    assert told[2].startswith("shard 2 (from line 5) failed, set aside") and tts.spoken.count("crash") == 3
    assert told[3].startswith("error: shard 2 is set aside, start the same command to try it again: RuntimeError")
    assert sorted(os.listdir("out/audio")) == ["00000", "00001"] and not os.path.exists("out/manifest.jsonl")
    assert batch("--shard-size", "2") == 1 and tts.spoken.count("crash") == 6


def test_a_folder_that_cannot_be_written_fails_alone(tts, capsys):
    write(*some(4))
    assert batch("--shard-size", "2", output="whole") == 0
    shutil.copytree("whole", "out")
    shutil.rmtree("out/audio/00001")
    open("out/audio/00001", "w").close()
    shutil.rmtree("out/audio/00000")
    os.unlink("out/manifest.jsonl")
    assert batch("--shard-size", "2") == 1
    assert "shard 1 (from line 3) failed, set aside: " in capsys.readouterr().err
    assert sorted(os.listdir("out/audio/00000")) == sorted(os.listdir("whole/audio/00000"))


@pytest.mark.parametrize("links", [True, False])
def test_two_attempts_at_a_time_come_to_the_same(tts, tmp_path, monkeypatch, links):
    """A worker that was taken for dead goes on beside its successor, and neither disturbs the other."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(PermissionError("no links")))
    write(*some(3))
    place = JobFolder("out")
    [shard] = read_input(Path("jobs.jsonl"), 10).shards
    jobs = [read_job(line, number, tmp_path) for number, line in shard.read(Path("jobs.jsonl"))]
    make = lambda: attempt_module.Attempt(place, shard, "wav", False)  # noqa: E731
    keep = lambda attempt, job: attempt.keep(job, attempt.stem(job), audio(job.request), 0.1, [])  # noqa: E731
    first = make()
    keep(first, jobs[0])
    second = make()
    assert second.has(1) and not second.has(2)
    keep(first, jobs[1])
    for job in jobs[1:]:
        keep(second, job)
    keep(first, jobs[2])
    assert second.finish().spoken == 3
    before = contents("out")
    assert first.finish().spoken == 3
    assert contents("out") == before and os.listdir("out/.work") == []
    third = make()
    assert not third.has(1)
    third.finish()
    assert contents("out") == before


def test_names_that_differ_in_case(tts):
    write({"id": "a", "text": "one"}, {"id": "A", "text": "two"})
    assert batch() == 0
    names = [record["file"] for record in read("out/manifest.jsonl")]
    assert names == ["audio/00000/a.wav", "audio/00000/A-559aead08264.wav"]


def test_processes_that_share_a_batch(tts, capsys):
    write(*some(10))
    assert batch("--shard-size", "2", output="whole") == 0
    share = ["--shard-size", "2", "--shard-count", "3", "--shard-index"]
    assert [batch(*share, "2"), batch(*share, "0")] == [0, 0]
    assert not os.path.exists("out/manifest.jsonl")
    assert "2 shards of other processes are not finished" in capsys.readouterr().out
    assert batch(*share, "1") == 0
    assert contents("out") == contents("whole")
    assert batch(*share, "0") == 0 and len(tts.spoken) == 20


def test_a_slurm_array(tts, monkeypatch, capsys):
    write(*some(3))
    array = ["--shard-size", "1", "--shard-index", "SLURM_ARRAY_TASK_ID", "--shard-count", "SLURM_ARRAY_TASK_COUNT"]
    assert batch(*array) == 2
    message = "--shard-index is SLURM_ARRAY_TASK_ID, expected a number, or an environment variable that holds one"
    assert message in capsys.readouterr().err
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    assert batch(*array) == 0
    assert os.listdir("out/audio") == ["00001"]
    assert batch(*array[:4], "--shard-count", "1") == 2


def test_what_has_changed_is_told(tts, capsys):
    write(*some(3))
    assert batch() == 0
    for options, message in [
        (("--format", "flac"), '--format is "flac", but'),
        (("--transcripts",), "--transcripts is true, but"),
        (("--shard-size", "2"), "--shard-size is 2, but"),
        (("--slots", "16"), "--slots is 16, but"),
        (("--dtype", "bfloat16"), '--dtype is "bfloat16", but'),
    ]:
        capsys.readouterr()
        assert batch(*options) == 2
        assert message in capsys.readouterr().err
    with open("model/manifest.json", "w") as file:
        file.write("{ }")
    assert batch() == 2 and "--model: not the model that" in capsys.readouterr().err
    with open("model/manifest.json", "w") as file:
        file.write("{}")
    write(*some(4))
    assert batch() == 2 and "jobs.jsonl: has changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dtype", "int8"), "--dtype is 'int8', expected float32 or bfloat16"),
        (("--format", "aiff"), "format 'aiff' is unknown"),
        (("--shard-index", "0"), "--shard-index and --shard-count go together"),
        (("--shard-index", "2", "--shard-count", "2"), "--shard-index is 2, expected 0 to 1"),
        (("--workers", "2"), "--workers needs --engine ray"),
        (("--engine", "spark"), "spark"),
        (("--model", "nowhere"), "nowhere/config.json: cannot be read"),
    ],
)
def test_bad_usage(tts, capsys, options, message):
    write(*some(1))
    assert batch(*options) == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists("out")


def test_folders_that_are_no_batch(tts, capsys):
    write(*some(1))
    os.mkdir("out")
    open("out/thesis.tex", "w").close()
    assert batch() == 2 and "out: holds something else, expected a new name" in capsys.readouterr().err
    os.rename("out/thesis.tex", "out/batch.json")
    assert batch() == 2 and "batch.json: not valid JSON" in capsys.readouterr().err
    with open("out/batch.json", "w") as file:
        file.write("[]")
    assert batch() == 2 and "not the settings of a batch" in capsys.readouterr().err
    write("", name="jobs.jsonl")
    assert batch(output="new") == 2 and not os.path.exists("new")


def test_one_run_a_folder(tts, capsys):
    write(*some(1))
    with lock_folder(Path("out")):
        assert batch() == 2 and "another run is going on in this folder" in capsys.readouterr().err
    assert batch() == 0


def test_a_voice_is_read_once_and_warnings_are_of_their_job(tts, monkeypatch):
    def voice(path, transcript=None):
        warnings.warn(f"{os.path.basename(path)}: no voice is heard in it", stacklevel=2)
        return read_voice(path, transcript)

    read_voice = tts.voice
    monkeypatch.setattr(tts, "voice", voice)
    write(*some(1), *[{"id": str(n), "text": "Hi", "reference": f"{n % 2}.wav"} for n in range(6)], *some(0))
    assert batch() == 0
    assert sorted(map(os.path.basename, tts.voices)) == ["0.wav", "1.wav"]
    told = {record["id"]: record["warnings"] for record in read("out/manifest.jsonl")}
    assert told.pop("0") == ["0.wav: no voice is heard in it"] and told.pop("1") == ["1.wav: no voice is heard in it"]
    assert not any(told.values())


def test_shards_follow_each_other_without_a_gap(tts, monkeypatch):
    """The next shard's jobs are handed over while the last of the one before are still spoken."""
    both, speak = threading.Barrier(2, timeout=30), tts._speak

    def wait_for_the_other(requests):
        yield from speak(requests)
        both.wait()  # passes when two shards have handed over everything

    monkeypatch.setattr(tts, "synthesize_batch", lambda requests: wait_for_the_other(requests) if requests else None)
    write(*some(8))
    assert batch("--shard-size", "4") == 0


@pytest.mark.extended  # compiles the models
def test_a_batch_is_what_the_model_speaks(tiny_model_directory, tmp_path):
    """On eight devices, with voices of every kind: the samples of `synthesize_batch`, and its warnings as records."""
    soundfile.write("ref.wav", tiny_model.speech(1.0), 16_000)
    mesh = sharding.make_mesh()
    tts = SparkTTS.load(tiny_model_directory, engine=EngineSettings(slots=8), mesh=mesh)
    tts.voice("ref.wav").save("voice.json", 16_000)
    kinds = [{"gender": "male"}, {"reference": "ref.wav"}, {"reference": "ref.wav", "transcript": "Hi."}]
    kinds += [{"voice": "voice.json"}, {"gender": "female", "pitch": "low", "top_k": 3}]
    jobs = [{"id": f"{n}", "text": f"Number {n}.", "max_seconds": 0.2 + n / 50, **kinds[n % 5]} for n in range(15)]
    write(*jobs, {"id": "nobody", "text": "Hello."}, {"id": "markup", "text": "Hi <b>there</b>.", "gender": "male"})
    assert batch("--model", str(tiny_model_directory), "--shard-size", "6") == 1
    [error] = read("out/errors.jsonl")
    assert error["id"] == "nobody" and "the model has no default voice" in error["reason"]
    requests = [Request(seed=seed_of(job["id"]), **{k: v for k, v in job.items() if k != "id"}) for job in jobs]
    spoken = dict(tts.synthesize_batch(requests))
    records = {record["id"]: record for record in read("out/manifest.jsonl")}
    assert len(records) == 16
    for number, expected in spoken.items():
        samples, _ = soundfile.read("out/" + records[f"{number}"]["file"])
        np.testing.assert_allclose(samples, expected.samples, atol=1e-4)  # of 16 bits
        assert records[f"{number}"]["tokens"] == len(expected.semantic_ids)
    assert any("<b>" in message for message in records["markup"]["warnings"])
