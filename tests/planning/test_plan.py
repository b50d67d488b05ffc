"""The planner: real steps compiled for CPU devices, its verdicts and its search; no TPU compiler is needed."""

import math
from pathlib import Path

import jax
import pytest
import yaml
from helpers.tiny_config import tiny

from spark_jax.cli import main as cli
from spark_jax.config import SparkConfig, from_mapping, to_mapping
from spark_jax.data.config import AudioDataConfig, TokenDataConfig
from spark_jax.errors import SparkError
from spark_jax.performance import hlo
from spark_jax.performance.hardware import GIB, Accelerator, accelerator
from spark_jax.planning import devices, plan
from spark_jax.planning.compile import DoesNotFit, Plan, compile_step, does_not_fit
from spark_jax.planning.describe import roofline
from spark_jax.planning.trainings import Corpus, corpus_steps, neighbors
from spark_jax.training.catalog import load_training
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.config import MeshConfig
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.llm.program import llm_program

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capsys):
    """Runs `spark-jax plan` in this process. Gives exit code, output, errors."""
    assert len(jax.devices()) == 8  # from now on --cpu-devices cannot change how many there are

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["plan", *arguments])
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A file of the language model's training, at a size that compiles in seconds."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "model.yaml").write_text(yaml.safe_dump({"llm": to_mapping(tiny())["llm"]}))
    run = {
        "tokens": "unused.jsonl",
        "model": str(folder / "model.yaml"),
        "loss_chunk": 32,
        "accumulate": 2,
        "data": {"row_length": 64, "batch_rows": 8},
        "mesh": {"data": 2, "fsdp": 4},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return str(folder / "run.yaml")


def program(devices):
    """One that is not compiled, on devices that all take part of the data."""
    return llm_program(LLMTrainingConfig(data=TokenDataConfig(batch_rows=8)), tiny(), devices)


def test_a_plan_of_the_real_step(run, config, monkeypatch):
    found = []
    monkeypatch.setattr(plan, "compile_step", lambda *arguments: found.append(compile_step(*arguments)) or found[-1])
    code, out, _ = run(config, "--cpu-devices", "8", "--hours-of-audio", "10")
    assert code == 0
    (planned,) = found
    # Arguments: the state's shards and the batch's, of one device.
    state = planned.program.abstract_state()
    size = lambda leaf, shape: math.prod(shape) * leaf.dtype.itemsize  # noqa: E731
    shards = sum(size(leaf, leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state))
    batch = sum(size(leaf, leaf.shape) for leaf in planned.program.batch.values()) / 8
    assert planned.arguments == pytest.approx(shards + batch, rel=0.01)
    assert planned.outputs < 0.01 * planned.arguments  # donated
    # Parameters are divided by fsdp, and gathered for every layer and micro-batch.
    gathers = planned.moved.collectives["all-gather"]
    assert gathers.count >= 2 * tiny().llm.num_hidden_layers and planned.moved.unknown_loops == 0
    assert planned.executed_flops == pytest.approx(planned.model_flops, rel=0.25)  # XLA's attention computes all pairs
    for piece in ("8 CPU devices", "data 2, fsdp 4", "2 × 8 rows of 64", "all-gather", "FLOPs a step"):
        assert piece in out
    assert "roofline" not in out  # a CPU's figures are unknown


@pytest.mark.extended
def test_what_does_not_fit_is_refused_with_figures(run, config):
    arguments = [config, "--cpu-devices", "1", "--set", "mesh.fsdp=1", "--set", "mesh.data=1", "--set", "accumulate=1"]
    code, out, _ = run(*arguments, "--memory", "0.0001", "--tries", "0")
    assert code == 1
    assert "does not fit" in out and "GiB a chip, of 0.00" in out and "no setting found in 0 tries" in out


@pytest.mark.extended
def test_memory_is_flat_in_the_size_of_the_vocabulary(config, tmp_path):
    """What grows is the table and its gradient: logits of 64 tokens exist at a time. With those of all of them, memory
    would grow by several arrays [tokens, vocab]."""
    plans = {}
    rows, length, small = 8, 256, 2048
    for vocab, chunk in ((small, 64), (2 * small, 64), (2 * small, rows * length)):
        llm = to_mapping(tiny())["llm"] | {"vocab_size": vocab, "num_hidden_layers": 1}
        (tmp_path / f"{vocab}.yaml").write_text(yaml.safe_dump({"llm": llm}))
        changes = [f"model={tmp_path / f'{vocab}.yaml'}", f"loss_chunk={chunk}", f"data.row_length={length}"]
        changes += [f"data.batch_rows={rows}", "accumulate=1", "mesh.data=1", "mesh.fsdp=1"]
        plans[vocab, chunk] = compile_step(load_training(config, changes), jax.devices()[:1], math.inf)
    before, after, whole = (planned.temporaries for planned in plans.values())
    table, logits = 4 * small * tiny().llm.hidden_size, 4 * rows * length * small
    assert after - before < 4 * table  # a few copies of what was added
    assert after - before < 0.1 * logits < 2 * logits < whole - before


def test_the_nearest_setting_is_searched_for(run, config, monkeypatch):
    """A made-up compiler: memory falls with rematerialization and rows, and 12 GiB are there."""
    tried = []

    def made_up(config, devices, limit, effort, save_hlo=None):
        assert effort == -0.5
        tried.append(config)
        if config.mesh.fsdp > 4:
            raise SparkError("axis 'embed' is not divisible")
        if config.remat == "attention":
            raise jax.errors.JaxRuntimeError("INTERNAL: no such layout")
        size = {"none": 40, "dots": 24, "attention": 20, "full": 18}[config.remat] * config.data.batch_rows / 8
        if size <= limit / GIB:
            moved = hlo.Traffic({}, 1.0, 0)
            return Plan(program(devices), tiny(), size * GIB, 0, 0, moved, 1.0, 1.0, 0.0)
        return DoesNotFit(f"{size} GiB", size * GIB)

    monkeypatch.setattr(plan, "compile_step", made_up)
    code, out, _ = run(config, "--cpu-devices", "8", "--memory", "12", "--tries", "20", "--effort", "-0.5")
    assert code == 1
    assert "neither does  remat=attention: the compiler failed: INTERNAL: no such layout" in out
    assert "this does     --set remat=full --set accumulate=4 --set data.batch_rows=4" in out
    assert tried[-1].accumulate * tried[-1].data.batch_rows == 16  # of the same batch
    code, out, _ = run(config, "--cpu-devices", "8", "--memory", "0.1", "--tries", "3", "--effort", "-0.5")
    assert code == 1 and "no setting found in 3 tries" in out


def test_what_may_be_changed():
    codec = BiCodecTrainingConfig(mesh=MeshConfig(data=4, fsdp=2))
    assert neighbors(codec) == [["mesh.data=2", "mesh.fsdp=4"], ["remat=true"], ["data.batch_segments=128"]]
    llm = LLMTrainingConfig(remat="attention", loss_chunk=256, data=TokenDataConfig(batch_rows=8))
    assert neighbors(llm) == [["mesh.fsdp=2"], ["remat=full"], ["accumulate=2", "data.batch_rows=4"]]
    ctc = CTCTrainingConfig(data=AudioDataConfig(batch_seconds=60.0))
    assert neighbors(ctc) == [["mesh.fsdp=2"], ["data.batch_seconds=30"]]


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (25.02G) "
            "exceeds available HBM (15.75G).",
            25.02,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 512.50M "
            "of 15.75G hbm.\nTotal hbm usage >= 33.00G",
            0.50,
        ),
        ("RESOURCE_EXHAUSTED: no figures", float("inf")),
    ],
)
def test_the_compilers_figures_are_read(message, gib):
    found = does_not_fit(message)
    assert found.needed / GIB == pytest.approx(gib, rel=1e-3) and "\n" not in found.message


def test_a_failure_of_the_compiler_is_no_verdict(run, config, monkeypatch):
    def failing(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile TPU kernel:\n  unsupported layout")

    monkeypatch.setattr(jax.stages.Lowered, "compile", failing)
    code, out, errors = run(config, "--cpu-devices", "8")
    assert code == 2 and "does not fit" not in out
    expected = "8 CPU devices: the compiler failed: INTERNAL: Mosaic failed to compile TPU kernel: unsupported layout\n"
    assert errors == f"error: {config} on {expected}"


def test_a_missing_compiler_is_told(run, config, monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology. See https://…")

    monkeypatch.setattr(devices.topologies, "get_topology_desc", missing)
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_WORKER_HOSTNAMES", "TPU_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "none")
    for where, told in (
        (("--topology", "v5e:4x4"), 'pip install "spark-jax[plan]"'),
        (("--topology", "16 chips"), "expected a TPU and its chips"),
        (("--cpu-devices", "9000"), "--cpu-devices 9000: expected 1 to 8"),
    ):
        code, _, errors = run(config, *where)
        assert code == 2 and told in errors and errors.count("\n") == 1
    code, _, errors = run("nowhere.yaml", "--cpu-devices", "1")
    assert code == 2 and "nowhere.yaml: cannot be read" in errors


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_a_chip_is_one_device(name, monkeypatch):
    pytest.importorskip("libtpu")
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_MIN_LOG_LEVEL"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    found = devices.topology(name)
    assert len(found) == 4 and accelerator(found[0].device_kind) is not None


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_is_recognized_by_its_keys(path):
    if path.stem.endswith("model"):
        with pytest.raises(SparkError):
            load_training(path)
    else:
        kinds = {"bicodec": BiCodecTrainingConfig, "wav2vec2": CTCTrainingConfig, "llm": LLMTrainingConfig}
        [expected] = [config for name, config in kinds.items() if name in path.stem]
        assert type(load_training(path)) is expected


def test_the_roofline_is_the_slowest_resource():
    moved = hlo.Traffic({"all-reduce": hlo.Collective(3, 50.0, 100.0)}, 3000.0, 0)
    planned = Plan(program(jax.devices()[:4]), tiny(), 0, 0, 0, moved, 7e4, 8e4, 0.0)
    roof = roofline(planned, Accelerator("x", 1e4, 0, 1e3, 1e1))
    assert (roof.compute, roof.memory, roof.links) == (2.0, 3.0, 10.0) and roof.bound == "links" and roof.step == 10.0
    roof = roofline(planned, Accelerator("x", 1e4, 0, 1e3))
    assert roof.links == 0 and roof.bound == "memory"


def test_a_corpus_in_steps():
    system = SparkConfig()
    llm = LLMTrainingConfig(accumulate=2, data=TokenDataConfig(row_length=1000, batch_rows=5))
    assert corpus_steps(llm, system, Corpus(tokens=1e9))[0] == 1e5
    corpus = Corpus(hours=64, utterance_seconds=7)
    assert corpus_steps(llm, system, corpus)[0] == 64 * 3600 * 2 * (54 + 42 / 7) / 1e4
    faster = from_mapping(SparkConfig, {"sample_rate": 24_000}, "75 semantic tokens a second")
    assert corpus_steps(llm, faster, corpus)[0] == 64 * 3600 * 2 * (79 + 42 / 7) / 1e4
    assert corpus_steps(BiCodecTrainingConfig(), system, corpus)[0] == pytest.approx(64 * 3600 / (256 * 2.4))
    assert corpus_steps(BiCodecTrainingConfig(), system, Corpus())[0] == 800_000
    ctc = CTCTrainingConfig(data=AudioDataConfig(batch_seconds=32.0))
    assert corpus_steps(ctc, system, corpus)[0] == 64 * 3600 / 32


@pytest.mark.parametrize("name", ["llm_0_5b", "llm_qwen3_0_6b"])
def test_the_recipes_are_three_epochs_of_voxbox(name):
    recipe = load_training(name)
    assert recipe.loop.steps == pytest.approx(
        3 * corpus_steps(recipe, SparkConfig(), Corpus(hours=102_500))[0], rel=0.01
    )


@pytest.mark.extended
def test_the_recognizer(run):
    sizes = ["model=tiny_en_model", "data.bucket_seconds=[0.4,0.8]", "data.batch_seconds=6.4"]
    code, out, _ = run("tiny_wav2vec2", "--cpu-devices", "2", *(f"--set={change}" for change in sizes))
    assert code == 0 and "data 2, fsdp 1, tensor 1; 6.4 s of utterances of up to 0.8 s a step" in out
    assert "all-reduce" in out  # of the gradients


@pytest.mark.extended
def test_the_program_s_text_is_kept(run, config, tmp_path):
    code, _, _ = run(config, "--cpu-devices", "8", "--save-hlo", str(tmp_path / "step.txt"))
    assert code == 0 and (tmp_path / "step.txt").read_text().startswith("HloModule")
