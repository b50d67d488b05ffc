"""The benchmark of training steps on a CPU: variants in a row, what cannot run is told, kernels of a trace by part."""

import dataclasses
import gzip
import json

import benchmark_steps
import jax
import kernel_times
import numpy as np
import pytest
import yaml
from helpers.tiny_config import tiny

from spark_jax.config import RELEASE
from spark_jax.errors import SparkError

SETTINGS = {
    "data": {"row_length": 256, "batch_rows": 2},
    "accumulate": 2,
    "loss_chunk": 128,
    "attention": "xla",
}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "model.yaml").write_text(json.dumps(dataclasses.asdict(tiny())))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS | {"model": str(tmp_path / "model.yaml")}))
    return str(tmp_path / "recipe.yaml")


@pytest.mark.extended
def test_variants_are_measured_and_faults_told(recipe, tmp_path, capsys):
    variants = [
        "",
        "remat=dots xla_backend_optimization_level=0 xla_cpu_enable_fast_math=false",
        "remat=some",
        "attention=cudnn dtype=bfloat16",
    ]
    out = tmp_path / "out.json"
    benchmark_steps.main(recipe, variants, steps=1, rounds=1, output=out, profile=tmp_path / "traces")
    plain, dots, unknown, missing = json.loads(out.read_text())
    assert plain["loss"] == pytest.approx(dots["loss"], rel=0.2) and plain["skipped"] == dots["skipped"] == 0
    assert 700 < plain["tokens"] <= 4 * 256 and 0.5 * plain["tokens"] < plain["targets"] < plain["tokens"]
    assert plain["targets_tts"] and plain["targets_controllable_tts"]
    assert plain["mfu"] is None and plain["useful_flops"] == dots["useful_flops"] > 1e8
    assert plain["step_seconds"] > 0 and plain["planned_bytes"] > plain["temporary_bytes"] > 0
    assert "no kernels, expected those of a device" in plain["profile_error"]  # of a CPU there are none
    assert "remat" in unknown["error"] and "cudnn on cpu devices" in missing["error"]
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 5 and " tokens |" in printed


def test_rows_are_packed_as_the_pipeline_packs_them():
    shapes = {name: jax.ShapeDtypeStruct((4, 2048), np.int32) for name in ("input_ids", "targets", "positions")}
    shapes |= {name: jax.ShapeDtypeStruct((4, 2048), np.int8) for name in ("segment_ids", "classes", "tasks")}
    batch = benchmark_steps.packed_rows(shapes, RELEASE, np.random.default_rng(0))
    assert np.mean(batch["segment_ids"] > 0) > 0.97 and 4 <= batch["segment_ids"].max() < 30
    starts = batch["segment_ids"] != np.pad(batch["segment_ids"], ((0, 0), (1, 0)))[:, :-1]
    assert not batch["positions"][starts].any() and (batch["positions"] == 0).sum() > starts.sum() - 4
    assert 0.7 < np.mean(batch["classes"] > 0) < 0.95
    inside = (batch["classes"] > 0)[:, :-1]
    assert (batch["targets"][:, :-1] == batch["input_ids"][:, 1:])[inside].all()
    assert 0.3 < np.mean(batch["tasks"][batch["classes"] > 0] == 1) < 0.7


def test_a_run_without_a_result_fails(recipe):
    with pytest.raises(SystemExit):
        benchmark_steps.main(recipe, ["remat=some"], steps=1, rounds=1)


CONVOLUTION = "jit(step)/transpose(jvp(D))/spectral_512/band_0_conv_1/conv_general_dilated"
PROGRAM = f"""
  %fusion.1 = f32[8] fusion(%a), kind=kLoop, metadata={{op_name="jit(step)/jvp(Qwen2)/layers/mlp/mul" stack_frame_id=3}}
  ROOT %conv.2 = (f32[8]{{0}}, u8[0]{{0}}) custom-call(%b), metadata={{op_name="{CONVOLUTION}"}}
"""


def write_trace(folder, lines):
    """Two kernels on a stream, repeated on another line of the device, and what the host did."""
    names = [("process_name", 1, 0, "/device:GPU:0"), ("process_name", 7, 0, "/host:CPU")]
    names += [("thread_name", 1, number, name) for number, name in enumerate(lines)]
    events = [
        {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}} for kind, pid, tid, name in names
    ]
    for tid in range(len(lines)):
        for start, name, operation in ((10, "loop", "fusion.1"), (40, "xmma", "conv.2"), (60, "xmma", "conv.2")):
            args = {"hlo_op": operation}
            events.append({"ph": "X", "pid": 1, "tid": tid, "ts": start, "dur": 20, "name": name, "args": args})
    events.append({"ph": "X", "pid": 7, "tid": 0, "ts": 0, "dur": 900, "name": "python"})
    place = folder / "plugins" / "profile" / "then"
    place.mkdir(parents=True)
    with gzip.open(place / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)


@pytest.mark.parametrize("lines", [("XLA Modules", "Stream #13(Compute)"), ("Steps", "XLA Ops")])
def test_kernels_by_name_and_part(tmp_path, lines):
    write_trace(tmp_path, lines)
    found = kernel_times.read_kernels(tmp_path, PROGRAM)
    assert [(kernel.name, kernel.count, kernel.milliseconds) for kernel in found.kernels] == [
        ("xmma", 2, 0.04),
        ("loop", 1, 0.02),
    ]
    assert found.span == 0.07
    assert found.by_part(benchmark_steps.PARTS["codec"]) == {
        "spectral discriminators' convolutions, backward": 0.04,
        "all else, forward": 0.02,
    }
    assert found.by_part(benchmark_steps.PARTS["llm"]) == {"all else, backward": 0.04, "mlp, forward": 0.02}
    named = kernel_times.read_kernels(tmp_path, PROGRAM.replace("fusion.1", "loop").replace("conv.2", "conv.3"))
    assert [kernel.operation for kernel in named.kernels] == ["", "jit(step)/jvp(Qwen2)/layers/mlp/mul"]
    table = found.table(benchmark_steps.PARTS["llm"], 1)
    assert "0.06 ms of kernels in 0.07 ms" in table and "| xmma | conv.2 |" in table and "loop" not in table


def test_a_folder_without_a_trace(tmp_path):
    with pytest.raises(SparkError, match=r"no \*\.trace\.json\.gz"):
        kernel_times.read_kernels(tmp_path, PROGRAM)


@pytest.mark.extended
def test_the_codecs_steps(tmp_path):
    """Without a file: noise, and weights that are drawn by their names; the loss is finite."""
    from helpers.tiny_codec_training import FEATURES, SYSTEM

    (tmp_path / "model.yaml").write_text(json.dumps(dataclasses.asdict(SYSTEM)))
    config = dataclasses.asdict(FEATURES) | {"model": str(tmp_path / "model.yaml")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(config))
    fast = ["xla_backend_optimization_level=0"]
    result, state, kernels = benchmark_steps.measure(str(tmp_path / "recipe.yaml"), fast, None, 1, 1, None)
    assert np.isfinite(result["loss"]) and result["skipped"] == 0 and kernels is None
    assert result["audio_seconds_per_second"] > 0 and int(state.step) == 2 and result["useful_flops"] > 1e6
