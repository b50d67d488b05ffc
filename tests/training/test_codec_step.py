"""The codec's train step: both players, freezing, skipped steps, revival of codes, exact resume."""

import dataclasses
import importlib.util
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile
import tiny_model
from jax.extend.core import jaxprs_in_params
from quick_compile import quickly

from spark_jax import sharding
from spark_jax.config import DiscriminatorConfig, tiny
from spark_jax.errors import SparkError
from spark_jax.training import checkpoint, codec_step
from spark_jax.training.codec_config import BiCodecTrainingConfig, CodecDataConfig, LossWeights, RevivalConfig
from spark_jax.training.config import LoopConfig
from spark_jax.training.optimizer import OptimizerConfig
from spark_jax.training.program import codec_models
from spark_jax.training.state import TrainState

ROOT = Path(__file__).parent.parent.parent
SYSTEM = tiny()
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, decay_steps=100)
GAN = BiCodecTrainingConfig(
    d_vector_train_start=1,
    freeze=("encoder",),
    discriminator=DiscriminatorConfig(
        periods=(3,),
        period_channels=(4, 4),
        fft_sizes=(128,),
        hop_lengths=(32,),
        window_lengths=(100,),
        bands=(0.0, 0.5, 1.0),
        spectral_channels=2,
    ),
    data=CodecDataConfig(segment_seconds=0.1, context_seconds=0.02, batch_segments=8, threads=1),
    generator_optimizer=OPTIMIZER,
    discriminator_optimizer=OPTIMIZER,
    loop=LoopConfig(steps=4, log_every=1, evaluate_every=2, checkpoint_every=2),
)
FEATURES = dataclasses.replace(GAN, phase="features", freeze=(), revival=RevivalConfig(every=2, until=4, below=1.0))


@pytest.fixture(scope="module")
def entry_point():
    spec = importlib.util.spec_from_file_location("train_bicodec", ROOT / "train" / "bicodec.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"wave": 1600, "input_values": 2240, "reference": SYSTEM.ref_segment_samples}
    return {name: rng.normal(0, 0.3, (8, size)).astype(np.float32) for name, size in sizes.items()}


def start(config, devices, adversarial, system=SYSTEM):
    """A drawn state, and a step that compiles at the first call."""
    mesh = sharding.make_mesh(devices)
    models = codec_models(config, system)
    boxed = jax.eval_shape(lambda: codec_step.init_state(models, config, system))
    shapes, shardings = sharding.unbox(boxed), sharding.tree_shardings(mesh, boxed)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = state.replace(params=tiny_model.draw(shapes.params), collections=tiny_model.draw(shapes.collections))
    step = sharding.jit_step(codec_step.codec_step(models, config, system, adversarial), mesh, shardings)
    step = quickly(step)
    return jax.device_put(state, shardings), lambda state, batch: step(state, sharding.put_batch(mesh, batch))


def host(tree):
    return jax.tree.map(np.array, tree)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_both_players():
    """On all devices; that one computes the same is shown in test_mesh.py."""
    state, step = start(GAN, 8, adversarial=True)
    first, history = host(state), []
    for seed in range(2):
        state, metrics = step(state, make_batch(seed))
        history.append(host(metrics))
    last = host(state)
    assert int(state.step) == 2 and int(state.skipped) == 0
    broken = make_batch(2) | {"wave": np.full((8, 1600), np.nan, np.float32)}
    state, metrics = step(state, broken)
    assert float(metrics["skipped"]) == 1 and int(state.skipped) == 1 and int(state.step) == 3
    assert equal(host(state.params), last.params) and equal(host(state.collections), last.collections)

    expected = {
        "loss", "mel", "vq", "features", "speaker", "adversarial", "feature_matching", "discriminator",
        "grad_norm", "discriminator_grad_norm", "perplexity", "active_codes", "skipped", "audio_seconds",
    }  # fmt: skip
    assert set(history[0]) == expected
    # What is trained moves, what is frozen does not.
    for group in ("discriminator", "generator"):
        for name, part in last.params[group].items():
            assert not equal(part, first.params[group][name]), name
    assert set(last.params["frozen"]) == {"encoder"} and equal(last.params["frozen"], first.params["frozen"])
    assert equal(last.params["wav2vec2"], first.params["wav2vec2"])
    # Step 0 hears the x-vector and has no speaker loss, step 1 has it.
    terms = lambda m: 15 * m["mel"] + sum(m[n] for n in ("vq", "features", "adversarial", "feature_matching"))  # noqa: E731
    np.testing.assert_allclose(history[0]["loss"], terms(history[0]), rtol=1e-4)
    np.testing.assert_allclose(history[1]["loss"], terms(history[1]) + history[1]["speaker"], rtol=1e-4)


def test_frozen_statistics():
    config = dataclasses.replace(GAN, freeze=("encoder", "quantizer", "speaker_encoder"), phase="features")
    state, step = start(config, 1, adversarial=False)
    before = host(state)
    state, metrics = step(state, make_batch())
    assert equal(host(state.collections), before.collections)
    assert set(state.params["generator"]) == {"prenet", "postnet"}
    assert "discriminator" not in state.params and "mel" not in metrics
    assert equal(host(state.params["frozen"]), before.params["frozen"])


def test_whole_utterances_count_without_their_padding():
    """Losses, gradients and statistics of padded utterances are those of the trimmed ones."""
    system = dataclasses.replace(
        SYSTEM,
        bicodec=dataclasses.replace(
            SYSTEM.bicodec,
            encoder=dataclasses.replace(SYSTEM.bicodec.encoder, out_channels=16),
            quantizer=dataclasses.replace(SYSTEM.bicodec.quantizer, input_dim=16),
            prenet=dataclasses.replace(SYSTEM.bicodec.prenet, input_channels=16),
        ),
    )
    config = dataclasses.replace(GAN, phase="features", losses=LossWeights(codes=1.0))
    rng = np.random.default_rng(0)
    trimmed = {
        "wave": np.zeros((8, 2000), np.float32),
        "input_values": rng.normal(0, 1, (8, 2000)).astype(np.float32),
        "lengths": np.full(8, 2000, np.int32),
        "reference": rng.normal(0, 0.3, (8, system.ref_segment_samples)).astype(np.float32),
    }
    padded = trimmed | {name: np.pad(trimmed[name], ((0, 0), (0, 1500))) for name in ("wave", "input_values")}
    results = []
    for batch in (trimmed, padded):
        state, step = start(config, 1, False, system)
        state, metrics = step(state, batch)
        results.append((host(metrics), host(state.collections)))
    (ours, statistics), (theirs, other) = results
    for name in ("loss", "vq", "features", "codes", "speaker", "perplexity", "active_codes", "grad_norm"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(
        ours["loss"], ours["vq"] + ours["features"] + ours["codes"], rtol=1e-5
    )  # step 0 hears the x-vector
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), statistics, other)


def test_waveform_from_tokens():
    """Phase "wave": prenet and wave generator alone, on given ids, without a feature extractor."""
    config = dataclasses.replace(GAN, phase="wave", freeze=(), adversarial_start=None)
    state, step = start(config, 1, adversarial=False)
    assert set(state.params) == {"generator", "frozen"}
    assert set(state.params["generator"]) == {"prenet", "wave_generator"}
    before = host(state)
    rng = np.random.default_rng(0)
    batch = {
        "wave": rng.normal(0, 0.3, (8, 1600)).astype(np.float32),
        "semantic_ids": rng.integers(0, SYSTEM.bicodec.quantizer.codebook_size, (8, 5), np.int32),
        "global_ids": rng.integers(0, 64, (8, SYSTEM.bicodec.speaker_encoder.token_num), np.int32),
    }
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["mel"]))
    assert losses[2] < losses[0] and set(metrics) == {"loss", "mel", "grad_norm", "skipped", "audio_seconds"}
    assert equal(host(state.params["frozen"]), before.params["frozen"])
    assert equal(host(state.collections), before.collections)


def test_validation_gives_the_first_rows_to_listen_to(monkeypatch):
    """Those of the global batch, which no process may have whole; its codec here doubles the samples."""
    config = dataclasses.replace(GAN, phase="wave", freeze=(), adversarial_start=None)
    models = codec_models(config, SYSTEM)
    doubled = lambda codec, variables, batch: SimpleNamespace(recons=2 * batch["wave"])  # noqa: E731
    monkeypatch.setattr(codec_step, "_from_tokens", doubled)
    zero = np.zeros((), np.int32)
    state = TrainState(zero, {"generator": {}, "frozen": {}}, opt_state={}, collections={}, skipped=zero)
    mesh, wave = sharding.make_mesh(4), make_batch()["wave"]
    places = jax.tree.map(lambda _: sharding.replicated(mesh), state)
    evaluate = sharding.jit_eval(codec_step.codec_evaluation(models, config, SYSTEM), mesh, places)
    values = quickly(evaluate)(state, sharding.put_batch(mesh, {"wave": wave}))
    assert set(values) == {"loss", "mel", "samples"}
    np.testing.assert_array_equal(values["samples"], [wave[:4], 2 * wave[:4]])


def test_a_process_reads_its_rows_of_the_validation_only(entry_point, tmp_path, monkeypatch):
    class Started(Exception):
        pass

    def stop(*_):
        raise Started

    loaded, load = [], entry_point.CodecExamples.load
    counted = lambda self, rows, rngs: loaded.append(rows) or load(self, rows, rngs)  # noqa: E731
    monkeypatch.setattr(entry_point.CodecExamples, "load", counted)
    monkeypatch.setattr(entry_point.sharding, "batch_share", lambda mesh: (1, 4))
    monkeypatch.setattr(entry_point.loop, "initialize_or_restore", stop)
    with pytest.raises(Started):
        entry_point.train(corpus_run(tmp_path), tmp_path / "run")
    [rows] = loaded
    assert len(rows) == GAN.data.batch_segments // 4


def test_revival_puts_dead_codes_onto_latents():
    state, step = start(FEATURES, 1, adversarial=False)
    state, _ = step(state, make_batch(0))
    usage = np.array(state.collections["code_statistics"]["quantizer"]["cluster_size"])
    before = np.array(state.params["generator"]["quantizer"]["codebook"])
    state, _ = step(state, make_batch(1))
    after = np.array(state.params["generator"]["quantizer"]["codebook"])
    even = 8 * 5 / SYSTEM.bicodec.quantizer.codebook_size
    assert np.all(usage < even)  # one step: the moving averages are still small
    assert np.all(np.any(np.abs(after - before) > 0.01, axis=1))
    np.testing.assert_allclose(state.collections["code_statistics"]["quantizer"]["cluster_size"], even, rtol=1e-6)
    state, _ = step(state, make_batch(2))  # not due
    third = np.array(state.params["generator"]["quantizer"]["codebook"])
    assert np.abs(third - after).max() < 0.01
    broken = make_batch(3) | {"input_values": np.full((8, 2240), np.nan, np.float32)}
    state, metrics = step(state, broken)  # due, but there is nothing to move codes onto
    assert float(metrics["skipped"]) == 1
    np.testing.assert_array_equal(state.params["generator"]["quantizer"]["codebook"], third)


def products(jaxpr):
    """(name, types) of every convolution and product in a traced program, loops and branches included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation.primitive.name, {str(variable.aval.dtype) for variable in equation.invars}
        for body in jaxprs_in_params(equation.params):
            yield from products(body)


def test_bfloat16_is_the_type_of_the_stacks_alone():
    """Convolutions, nine in ten products by size; not parameters, moments, statistics, losses."""
    config = dataclasses.replace(GAN, dtype="bfloat16", freeze=())
    models = codec_models(config, SYSTEM)
    state = jax.eval_shape(lambda: sharding.unbox(codec_step.init_state(models, config, SYSTEM)))
    step = codec_step.codec_step(models, config, SYSTEM, True)
    jaxpr, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(state, make_batch())
    types = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert types(after) == types(state)
    assert {metric.dtype for metric in metrics.values()} == {np.dtype(np.float32)}
    convolutions = [kinds for name, kinds in products(jaxpr.jaxpr) if name == "conv_general_dilated"]
    # All but wav2vec2's embedding of positions.
    assert len(convolutions) > 200 and sum(kinds != {"bfloat16"} for kinds in convolutions) == 1


@pytest.mark.slow
def test_bfloat16_computes_the_same_within_its_precision():
    history = {}
    for dtype in ("float32", "bfloat16"):
        state, step = start(dataclasses.replace(GAN, dtype=dtype), 1, adversarial=True)
        state, metrics = step(state, make_batch())
        history[dtype] = host(metrics)
    ours, theirs = history["bfloat16"], history["float32"]
    for name in ("loss", "mel", "vq", "features", "adversarial", "feature_matching", "discriminator", "grad_norm"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0.05, err_msg=name)
        assert ours[name] != theirs[name], name


def corpus_run(folder):
    """The configuration of a run on a corpus of noise in the folder."""
    rng = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as lines:
        for i in range(12):
            soundfile.write(folder / f"{i}.flac", rng.uniform(-0.5, 0.5, 3000 + 500 * i), 16_000)
            split = "train" if i < 10 else "validation"
            record = {"index": str(i), "split": split, "wav_path": f"{i}.flac", "duration": 0.2}
            lines.write(json.dumps(record) + "\n")
    (folder / "model.yaml").write_text(json.dumps(as_lists(dataclasses.asdict(SYSTEM))))
    return dataclasses.replace(FEATURES, corpus=str(folder), model=str(folder / "model.yaml"))


@pytest.mark.slow
def test_stopped_run_resumes_exactly(entry_point, tmp_path, monkeypatch):
    """Train 4 steps; train 2, resume to 4; the same metrics, validation included, and the same codec."""
    cache = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    try:
        config = corpus_run(tmp_path)
        entry_point.train(config, tmp_path / "whole")

        # The first half is a whole run that is stopped after two steps, as by a signal.
        fit, steps = entry_point.loop.fit, []

        def stopping(state, step_fn, data, **arguments):
            def step(state, batch):
                steps.append(batch)
                if len(steps) == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return step_fn(state, batch)

            return fit(state, step, data, **arguments)

        monkeypatch.setattr(entry_point.loop, "fit", stopping)
        entry_point.train(config, tmp_path / "halves")
        assert len(steps) == 2
        monkeypatch.setattr(entry_point.loop, "fit", fit)
        entry_point.train(config, tmp_path / "halves")
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)
    whole, halves = (read_metrics(tmp_path / name) for name in ("whole", "halves"))
    assert [line["step"] for line in whole if line["group"] == "train"] == [1, 2, 3, 4]
    assert whole == halves
    ours, theirs = (checkpoint.load_params(tmp_path / name / "codec") for name in ("whole", "halves"))
    assert equal(ours, theirs) and set(ours) == {"params", "batch_stats", "code_statistics"}

    # The part is a start for another run, and a wrong size is refused.
    mesh = sharding.make_mesh(1)
    models = codec_models(config, SYSTEM)
    state, shardings = sharding.initialize(mesh, lambda: codec_step.init_state(models, config, SYSTEM))
    config = dataclasses.replace(config, init_from=str(tmp_path / "whole" / "codec"))
    pretrained = entry_point.load_pretrained(state, config)
    state = codec_step.with_pretrained(state, shardings, pretrained)
    assert equal(host(codec_step.codec_variables(state)), ours)
    quantizer = dataclasses.replace(SYSTEM.bicodec.quantizer, codebook_size=32)
    smaller = dataclasses.replace(SYSTEM, bicodec=dataclasses.replace(SYSTEM.bicodec, quantizer=quantizer))
    models = codec_models(config, smaller)
    fresh = jax.eval_shape(lambda: sharding.unbox(codec_step.init_state(models, config, smaller)))
    with pytest.raises(SparkError, match="codebook"):
        entry_point.load_pretrained(fresh, config)


def test_parts_are_checked():
    assert dataclasses.replace(GAN, phase="features").frozen_parts == ("encoder", "wave_generator")
    with pytest.raises(SparkError, match="freeze: unknown part 'decoder'"):
        _ = dataclasses.replace(GAN, freeze=("decoder",)).frozen_parts


def as_lists(value):
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, tuple) else value


def read_metrics(directory):
    """Lines without the wall clock's figures."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if "seconds" not in name or name == "audio_seconds"}
        for line in lines if line["group"] != "run"
    ]  # fmt: skip
