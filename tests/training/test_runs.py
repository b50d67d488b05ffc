"""The trainings as programs: killed, stopped, out of room, and in two processes; each time the same metrics."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import record_files
from helpers.tiny_config import tiny
from safetensors.numpy import load_file

from spark_jax import config
from spark_jax.cli.main import main
from spark_jax.convert.configuration import read_llm_config
from spark_jax.model_directory.directory import read_config, read_part
from spark_jax.shared.pytree import flatten
from spark_jax.text.tokenizer import open_tokenizer

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "per_second", "mfu")
STEPS = 20
# Something happens to the process before a step: `python -c WITH_EVENT STEP EVENT train/llm.py …`.
WITH_EVENT = """
import os, resource, runpy, signal, sys, time
from spark_jax import sharding

at, event = int(sys.argv[1]), sys.argv[2]
put, calls = sharding.put_batch, []

def put_batch(mesh, batch):
    calls.append(None)
    if len(calls) == at:
        exec(event)
    return put(mesh, batch)

sharding.put_batch = put_batch
sys.argv = sys.argv[3:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
KILL, TERMINATE = (f"os.kill(os.getpid(), signal.{name})" for name in ("SIGKILL", "SIGTERM"))
# Once step 5 is saved, room for metrics and the part, not for the state with its optimizer: every write beyond fails,
# as on a full disk.
NO_ROOM = """
while not os.path.isdir(os.path.join(sys.argv[3], "checkpoints", "5")):
    time.sleep(0.05)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A configuration file of a run that takes seconds: random tokens, two layers."""
    folder = tmp_path_factory.mktemp("settings")
    rng = np.random.default_rng(0)
    records = [
        {
            "index": f"u{i}",
            "split": "validation" if i % 6 == 0 else "train",
            "text": "ab " * int(rng.integers(1, 6)),
            "gender": "female",
            "language": "en",
            "pitch": 200.0,
            "speed": 4.0,
            "global_ids": rng.integers(0, 64, 32).tolist(),
            "semantic_ids": rng.integers(0, 64, 12).tolist(),
        }
        for i in range(60)
    ]
    (folder / "tokens.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "model.yaml").write_text(json.dumps(config.to_mapping(tiny())))  # JSON is YAML
    run = {
        "tokens": str(folder / "tokens.jsonl"),
        "model": os.path.relpath(folder / "model.yaml", ROOT),
        "data": {"row_length": 128, "batch_rows": 4, "max_length": 128},
        "optimizer": {"warmup_steps": 2},
        "loop": {"steps": STEPS, "log_every": 1, "evaluate_every": 10, "checkpoint_every": 5},
    }
    (folder / "llm.yaml").write_text(json.dumps(run))
    return folder / "llm.yaml"


@pytest.fixture(scope="module")
def codec_settings(tmp_path_factory):
    """The codec with both players from the second step on, on noise."""
    folder = tmp_path_factory.mktemp("codec")
    rng = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as lines:
        for i in range(20):
            soundfile.write(folder / f"{i}.flac", rng.uniform(-0.5, 0.5, 3000 + 500 * i), 16_000)
            record = {"index": str(i), "split": "train" if i < 16 else "validation", "wav_path": f"{i}.flac"}
            lines.write(json.dumps(record | {"duration": (3000 + 500 * i) / 16_000}) + "\n")
    (folder / "model.yaml").write_text(json.dumps(config.to_mapping(tiny())))
    optimizer = {"warmup_steps": 0, "decay_steps": 100, "eps": 1e-4}
    run = {
        "corpus": str(folder),
        "model": str(folder / "model.yaml"),
        "adversarial_start": 1,
        "d_vector_train_start": 1,
        "discriminator": {
            "periods": [3],
            "period_channels": [4, 4],
            "fft_sizes": [128],
            "hop_lengths": [32],
            "window_lengths": [100],
            "bands": [0.0, 0.5, 1.0],
            "spectral_channels": 2,
        },
        "data": {"segment_seconds": 0.1, "context_seconds": 0.02, "batch_segments": 4, "threads": 1},
        "generator_optimizer": optimizer,
        "discriminator_optimizer": optimizer,
        "loop": {"steps": 5, "log_every": 1, "evaluate_every": 5, "checkpoint_every": 2},
    }
    (folder / "bicodec.yaml").write_text(json.dumps(run))
    return folder / "bicodec.yaml"


@pytest.fixture(scope="module")
def recognizer_settings(tmp_path_factory):
    """A recognizer of one layer on noise; the last batch of an epoch has one utterance, the second process none."""
    folder = tmp_path_factory.mktemp("recognizer")
    rng = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as lines:
        for i in range(10):
            soundfile.write(folder / f"{i}.flac", rng.uniform(-0.5, 0.5, 4000), 16_000)
            record = {"index": str(i), "split": "train" if i < 5 else "validation", "wav_path": f"{i}.flac"}
            lines.write(json.dumps(record | {"duration": 0.25, "text": "ba b"[: 1 + i % 4]}) + "\n")
    system = config.to_mapping(tiny())
    system["wav2vec2"] |= {"num_hidden_layers": 1, "feature_layers": [1]}
    (folder / "model.yaml").write_text(json.dumps(system))
    run = {
        "corpus": str(folder),
        "model": str(folder / "model.yaml"),
        "target": "text",
        "data": {"bucket_seconds": [0.25], "batch_seconds": 1.0},
        "optimizer": {"warmup_steps": 0},
        "loop": {"steps": 3, "log_every": 1, "evaluate_every": 3, "checkpoint_every": 3},
    }
    (folder / "wav2vec2.yaml").write_text(json.dumps(run))
    return folder / "wav2vec2.yaml"


def start(settings, output, *arguments, at=None, event=None, devices=2):
    """train/NAME.py for settings NAME.yaml; `event` happens before step `at` of this start."""
    program = ROOT / "train" / f"{settings.stem}.py"
    command = [str(program), str(settings), "--output", str(output), *map(str, arguments)]
    head = ["-c", WITH_EVENT, str(at), event] if event else []
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, *head, *command], env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def finish(process, code=0, seconds=900):
    """Its log, once it has ended with the exit code."""
    try:
        _, log = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, log = process.communicate()
        raise AssertionError(f"still running after {seconds} s:\n{log}") from None
    assert process.returncode == code, log
    return log


def metrics(output):
    """All numbers of the run that are no times."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(TIMES)}
        for line in lines
        if line["group"] != "run"
    ]


def last_checksums(output):
    """Checksums of the whole last state, optimizer included."""
    step = max(int(name) for name in os.listdir(output / "checkpoints") if name.isdigit())
    description = json.loads((output / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").read_text())
    return step, description["custom_metadata"]["checksums"]


def assert_same_run(ours, theirs):
    assert metrics(ours) == metrics(theirs)
    assert [line["step"] for line in metrics(ours) if line["group"] == "train"] == list(range(1, STEPS + 1))
    assert last_checksums(ours) == last_checksums(theirs) and last_checksums(ours)[0] == STEPS
    ours, theirs = (flatten(read_part(folder, "llm")) for folder in (ours, theirs))
    assert all((np.asarray(ours[name]) == np.asarray(theirs[name])).all() for name in theirs) and len(ours) > 8


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    finish(start(settings, output))
    return output


@pytest.mark.extended
def test_an_output_folder_is_exported_from_any_working_directory(settings, whole, tmp_path, monkeypatch):
    assert not os.path.isabs(json.loads((whole / "training.json").read_text())["model"])
    assert read_config(whole).llm == tiny().llm and (whole / "tokenizer").is_dir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(whole), "exported"])
    assert ended.value.code in (0, None)
    llm = tiny().llm
    assert read_llm_config(tmp_path / "exported" / "LLM" / "config.json") == llm
    embedding = read_part(whole, "llm")["params"]["embed"]["embedding"]
    exported = load_file(tmp_path / "exported" / "LLM" / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(exported, embedding)


def test_killed_after_12_steps_and_resumed_is_the_run_that_was_not(settings, whole, tmp_path):
    finish(start(settings, tmp_path, at=13, event=KILL), -signal.SIGKILL)
    assert len(metrics(tmp_path)) < len(metrics(whole))
    finish(start(settings, tmp_path))
    assert_same_run(tmp_path, whole)


@pytest.mark.extended
def test_records_that_a_stopped_run_has_skipped_are_counted(settings, tmp_path):
    """In data.json and in the metrics, by the time that it ends."""
    system = tiny()
    lines = [json.loads(line) for line in (settings.parent / "tokens.jsonl").read_text().splitlines()]
    for split in ("train", "validation"):
        chosen = [line for line in lines if line["split"] == split]
        record_files.write_tokens(tmp_path / "records", chosen, open_tokenizer("bytes", system), 1, split)
    for i in range(25, 35):
        if i % 6:
            record_files.garble(tmp_path / "records" / "train-00000-of-00001.array_record", f'"u{i}"')
    changes = (f"tokens={tmp_path / 'records'}", "data.on_error=skip", "loop.log_every=1000")
    arguments = [argument for change in changes for argument in ("--set", change)]
    log = finish(start(settings, tmp_path / "run", *arguments, at=7, event=TERMINATE))
    assert "step 7: stopped by a signal, saved" in log
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert last["group"] == "run" and 1 <= last["skipped_records"] <= data["train"]["dropped"]["unreadable"]


@pytest.mark.slow
def test_stopped_and_resumed_on_another_mesh(settings, whole, tmp_path):
    """The same losses up to rounding: sums are made in another order."""
    log = finish(start(settings, tmp_path, at=7, event=TERMINATE))
    assert "step 7: stopped by a signal, saved" in log
    finish(start(settings, tmp_path, "--set", "mesh.data=1", "--set", "mesh.fsdp=4", devices=4))
    for ours, theirs in zip(metrics(tmp_path), metrics(whole), strict=True):
        assert ours.keys() == theirs.keys() and ours["step"] == theirs["step"]
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


@pytest.mark.extended
def test_no_room_for_a_checkpoint_ends_in_one_line_and_costs_five_steps(settings, whole, tmp_path):
    log = finish(start(settings, tmp_path, at=8, event=NO_ROOM), 2)
    last = log.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/checkpoints/10: checkpoint cannot be written (") and "too large" in last
    assert "Traceback" not in log
    log = finish(start(settings, tmp_path))
    assert "step 5 " not in log and "step 6 train" in log
    assert_same_run(tmp_path, whole)


def in_two_processes(settings, output, *arguments, at=None, event=None, index=1):
    """Both processes, one device each, after the other; the event happens to process `index`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    several = ("--coordinator", f"localhost:{port}", "--num-processes", 2)
    return [
        start(
            settings,
            output,
            *several,
            "--process-id",
            i,
            *arguments,
            devices=1,
            at=at,
            event=event if i == index else None,
        )
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def whole_of_two(settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole_of_two")
    logs = [finish(process) for process in in_two_processes(settings, output)]
    assert "step 20 train" in logs[0] and logs[1] == ""  # one of them speaks
    return output


@pytest.mark.slow
def test_two_processes_train_as_one_does(settings, whole, whole_of_two):
    """Up to rounding: the rows of a batch are the same, in another order."""
    for ours, theirs in zip(metrics(whole_of_two), metrics(whole), strict=True):
        assert ours.keys() == theirs.keys() and ours["step"] == theirs["step"] and ours["group"] == theirs["group"]
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
        assert ours["tokens"] == theirs["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_one_of_two_killed_ends_the_other_and_both_resume(settings, whole_of_two, tmp_path, index):
    processes = in_two_processes(settings, tmp_path, at=13, event=KILL, index=index)
    finish(processes[index], -signal.SIGKILL)
    _, log = processes[1 - index].communicate(timeout=240)  # an end, whichever of JAX's ways it takes
    print(f"the other ended with {processes[1 - index].returncode}:\n{log[-600:]}")
    assert processes[1 - index].returncode not in (0, None)
    for process in in_two_processes(settings, tmp_path):
        finish(process)
    assert_same_run(tmp_path, whole_of_two)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_sigterm_to_one_of_two_stops_both_and_loses_no_step(settings, whole_of_two, tmp_path, index):
    logs = [finish(process) for process in in_two_processes(settings, tmp_path, at=7, event=TERMINATE, index=index)]
    step, _ = last_checksums(tmp_path)
    assert 7 <= step < STEPS and f"step {step}: stopped by a signal, saved" in logs[0]
    assert metrics(tmp_path)[-1]["step"] == step
    for process in in_two_processes(settings, tmp_path):
        finish(process)
    assert_same_run(tmp_path, whole_of_two)


@pytest.mark.slow
def test_the_codec_in_two_processes_is_that_of_one_and_resumes_after_a_kill(codec_settings, tmp_path, monkeypatch):
    """Statistics of batch norm and codes, both players and validation are of the whole batch."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiling is most of it
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    finish(start(codec_settings, one))
    for process in in_two_processes(codec_settings, two):
        finish(process)
    found, expected = metrics(two), metrics(one)
    assert [line["step"] for line in expected if line["group"] == "train"] == [1, 2, 3, 4, 5]
    assert "discriminator" not in expected[0] and expected[1]["discriminator"] > 0
    assert expected[1]["discriminator_learning_rate"] == pytest.approx(1e-4)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() and ours["group"] == theirs["group"]
        for name in ours.keys() - {"group"}:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-6, err_msg=name)

    processes = in_two_processes(codec_settings, killed, at=4, event=KILL)
    finish(processes[1], -signal.SIGKILL)
    processes[0].communicate(timeout=240)
    assert processes[0].returncode != 0
    for process in in_two_processes(codec_settings, killed):
        finish(process)
    assert metrics(killed) == found and last_checksums(killed) == last_checksums(two)


@pytest.mark.slow
def test_the_recognizer_in_two_processes_is_that_of_one(recognizer_settings, tmp_path, monkeypatch):
    """Its validation counts the utterances of both."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiling is most of it
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(recognizer_settings, one))
    for process in in_two_processes(recognizer_settings, two):
        finish(process)
    expected = metrics(one)
    assert expected[-1]["group"] == "validation" and expected[-1]["items"] == 5
    for ours, theirs in zip(metrics(two), expected, strict=True):
        assert ours.keys() == theirs.keys() and ours["group"] == theirs["group"]
        for name in ours.keys() - {"group"}:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
