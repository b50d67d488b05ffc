"""Plans of the speech engine: its programs over shapes alone, on CPU devices, and for TPUs where the compiler is."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import yaml
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.cli import main as cli
from spark_jax.config import RELEASE, to_mapping
from spark_jax.errors import SparkError
from spark_jax.inference.engine import Engine, EngineSettings
from spark_jax.performance import hlo
from spark_jax.planning import devices, inference
from spark_jax.planning.compile import DoesNotFit, Measured
from spark_jax.planning.engine_programs import AbstractEngine, chip_bytes
from spark_jax.planning.inference import InferenceQuestion, cache_copies
from spark_jax.qwen2.model import Qwen2
from spark_jax.text.tokenizer import build_tokenizer

WINDOW, SLOTS = 1024, 256


def sizes():
    """Returns tiny sizes whose vocabulary has all speech tokens of a real tokenizer."""
    config = tiny()
    tokenizer = build_tokenizer("bytes", 64, 64)
    return dataclasses.replace(config, llm=dataclasses.replace(config.llm, vocab_size=tokenizer.vocab_size)), tokenizer


@pytest.mark.extended
def test_the_shapes_are_those_of_a_real_engine():
    config, tokenizer = sizes()
    mesh = sharding.make_mesh(data=2, devices=jax.devices()[:2])
    settings = EngineSettings(slots=4, block=2, capacity=128)
    planned = AbstractEngine(config, settings, "float32", mesh)
    model = Qwen2(config.llm)
    params = jax.tree.map(lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding), planned.params)
    real = Engine(model, params, tokenizer, 32, max_semantic_tokens=50, settings=settings, mesh=mesh)

    def shapes(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding.shard_shape(leaf.shape)), tree)

    for own, made in ((planned.state, real._state), (planned.head, real._head), (planned.grammar, real._grammar)):
        assert jax.tree.leaves(shapes(own)) == jax.tree.leaves(shapes(made))
    assert planned.prefill(70).arguments[-1].ids.shape == (real._prefills[96], 96)


def test_the_ideal_is_the_weights_and_the_window_once():
    engine = AbstractEngine(RELEASE, EngineSettings(slots=SLOTS, capacity=2048), "bfloat16", sharding.make_mesh(data=1))
    cache = 24 * 2 * 2 * 64 * 2 * WINDOW * SLOTS
    assert engine.ideal_bytes(WINDOW) == pytest.approx(cache + 2 * (357_898_112 + 13_312 * 896), rel=1e-3)
    assert chip_bytes(engine.state.cache.keys) * 2 == 2 * cache


@pytest.mark.extended
def test_a_plan_on_cpu_devices(tmp_path, capsys):
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(to_mapping(sizes()[0])))
    options = ["--cpu-devices", "2", "--slots", "8", "--window", "128", "--capacity", "128", "--utterance-seconds", "1"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "--inference", str(tmp_path / "model.yaml"), *options, "--memory", "1", "--tries", "0"])
    out = capsys.readouterr().out
    assert not ended.value.code
    for piece in ("decode block", "8 steps of 8 slots, 128 of 128 places read", "prefill", "vocoder", "fits"):
        assert piece in out


def test_the_largest_number_of_slots(monkeypatch):
    """A made-up compiler, whose temporaries are a tenth of the slots; another says that all is too large at first."""
    config = sizes()[0]
    monkeypatch.setattr(InferenceQuestion, "system", lambda question: config)
    monkeypatch.setattr(hlo, "traffic", lambda text: hlo.Traffic({}, 1.0, 0))
    question = InferenceQuestion("made up", slots=8, window=128, capacity=128, memory=0.01, dtype="float32")
    plan = inference._Plan(question, "here", jax.devices()[:1])
    engine = plan.engine(8)
    each = chip_bytes(engine.state) / 8
    tried = []

    def made_up(program):
        slots = program.arguments[3].answers.token.shape[0]
        tried.append(slots)
        return Measured(0.0, 0.0, 0.1 * each * slots, 0.0, ""), 0.0

    monkeypatch.setattr(plan, "_compile", made_up)
    most = plan.most_slots(engine, 0.8 * each)
    fixed = engine.resident - 8 * each
    assert most % 8 == 0 and tried == [most]
    assert fixed + 1.1 * each * most <= plan.limit < fixed + 1.1 * each * (most + 8)
    monkeypatch.setattr(plan, "_compile", lambda program: (DoesNotFit("no", 1.0), 0.0))
    assert plan.most_slots(engine, float("inf")) is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cpu-devices", "1"], "expected CONFIG or --inference MODEL"),
        (["tiny_llm", "--inference", "0.5b", "--cpu-devices", "1"], "expected CONFIG or --inference MODEL"),
        (["--inference", "0.5b", "--cpu-devices", "1", "--dtype", "int8"], "--dtype is int8"),
        (["--inference", "0.5b", "--cpu-devices", "2", "--slots", "3"], "--slots is 3, expected a multiple of the 2"),
        (["--inference", "0.5b", "--cpu-devices", "1", "--window", "9999"], "--window is 9999, expected 1 to"),
    ],
)
def test_wrong_questions(arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", *arguments])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and told in errors and errors.count("\n") == 1


@pytest.fixture
def tpu(monkeypatch):
    """Gives `devices.topology` where there is a TPU compiler."""
    pytest.importorskip("libtpu")
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_MIN_LOG_LEVEL"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    return devices.topology


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:2x2", "v6e:1x1"])
def test_a_decode_step_of_the_release_moves_what_it_must(name, tpu):
    """Within 1.3 times of the weights once and the window once, at 256 slots a chip, and the cache is never copied."""
    chips = tpu(name)
    settings = EngineSettings(slots=SLOTS * len(chips), capacity=WINDOW)
    engine = AbstractEngine(RELEASE, settings, "bfloat16", sharding.make_mesh(devices=chips))
    program = engine.decode_block(WINDOW)
    text = program.jitted.trace(*program.arguments).lower().compile().as_text()
    moved = hlo.traffic(text)
    assert moved.unknown_loops == 0 and not moved.collectives
    assert 1 <= moved.memory_bytes / settings.block / engine.ideal_bytes(WINDOW) < 1.3
    assert cache_copies(engine, WINDOW, text) == []
    # The check can fail: an array of the size of a layer's keys is found.
    assert hlo.large_writes(text, 1e6)


def test_a_model_that_is_not_there():
    with pytest.raises(SparkError, match="nowhere"):
        InferenceQuestion("nowhere").system()
