"""The codec's train step and runs of it: both players, skipped steps, bfloat16, validation, exact resume."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile
from helpers.quick_compile import quickly
from helpers.stopped_run import read_metrics, whole_and_stopped
from helpers.tiny_codec_training import FEATURES, GAN, SYSTEM, equal, host, make_batch, start
from jax.extend.core import jaxprs_in_params

from spark_jax import sharding
from spark_jax.bicodec import losses
from spark_jax.bicodec.model import BiCodecOutput
from spark_jax.config import SpeakerEncoderConfig, WaveGeneratorConfig
from spark_jax.errors import SparkError
from spark_jax.model_directory.directory import read_part
from spark_jax.training.codec import reconstruction
from spark_jax.training.codec import run as codec_run
from spark_jax.training.codec.evaluation import codec_evaluation
from spark_jax.training.codec.models import codec_models
from spark_jax.training.codec.state import codec_variables, init_state, with_pretrained
from spark_jax.training.codec.step import codec_step
from spark_jax.training.config import MeshConfig
from spark_jax.training.run import Run
from spark_jax.training.state import TrainState


@pytest.mark.extended
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
        "loss",
        "mel",
        "vq",
        "features",
        "speaker",
        "adversarial",
        "feature_matching",
        "discriminator",
        "grad_norm",
        "discriminator_grad_norm",
        "perplexity",
        "active_codes",
        "skipped",
        "audio_seconds",
    }
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


def test_validation_gives_the_first_rows_to_listen_to(monkeypatch):
    """Those of the global batch, which no process may have whole; its codec here doubles the samples."""
    config = dataclasses.replace(GAN, phase="wave", freeze=(), adversarial_start=None)
    models = codec_models(config, SYSTEM)

    def doubled(codec, variables, batch):
        absent = dict.fromkeys(field.name for field in dataclasses.fields(BiCodecOutput))
        return BiCodecOutput(**absent | {"recons": 2 * batch["wave"]})

    monkeypatch.setattr(reconstruction, "reconstruct_from_tokens", doubled)
    zero = np.zeros((), np.int32)
    state = TrainState(zero, {"generator": {}, "frozen": {}}, opt_state={}, collections={}, skipped=zero)
    mesh, wave = sharding.make_mesh(4), make_batch()["wave"]
    places = jax.tree.map(lambda _: sharding.replicated(mesh), state)
    evaluate = sharding.jit_eval(codec_evaluation(models, config, SYSTEM), mesh, places)
    values = quickly(evaluate)(state, sharding.put_batch(mesh, {"wave": wave}))
    assert set(values) == {"loss", "mel", "samples"}
    np.testing.assert_array_equal(values["samples"], [wave[:4], 2 * wave[:4]])


def test_a_process_reads_its_rows_of_the_validation_only(tmp_path, monkeypatch):
    class StartedError(Exception):
        pass

    def stop(*_):
        raise StartedError

    loaded, load = [], codec_run.CodecExamples.load
    counted = lambda self, rows, rngs: loaded.append(rows) or load(self, rows, rngs)  # noqa: E731
    monkeypatch.setattr(codec_run.CodecExamples, "load", counted)
    monkeypatch.setattr(sharding, "batch_share", lambda mesh: (1, 4))
    monkeypatch.setattr(Run, "initialize_or_restore", stop)
    with pytest.raises(StartedError):
        codec_run.train(corpus_run(tmp_path), tmp_path / "run")
    [rows] = loaded
    assert len(rows) == GAN.data.batch_segments // 4


def products(jaxpr):
    """(name, types) of every convolution and product in a traced program, loops and branches included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation.primitive.name, {str(variable.aval.dtype) for variable in equation.invars}
        for body in jaxprs_in_params(equation.params):
            yield from products(body)


@pytest.mark.extended
def test_bfloat16_is_the_type_of_the_stacks_alone():
    """Convolutions, nine in ten products by size; not parameters, moments, statistics, losses."""
    config = dataclasses.replace(GAN, dtype="bfloat16", freeze=())
    models = codec_models(config, SYSTEM)
    state = jax.eval_shape(lambda: sharding.unbox(init_state(models, config, SYSTEM)))
    step = codec_step(models, config, SYSTEM, True)
    jaxpr, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(state, make_batch())
    types = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert types(after) == types(state)
    assert {metric.dtype for metric in metrics.values()} == {np.dtype(np.float32)}
    convolutions = [kinds for name, kinds in products(jaxpr.jaxpr) if name == "conv_general_dilated"]
    # All but wav2vec2's embedding of positions.
    assert len(convolutions) > 200 and sum(kinds != {"bfloat16"} for kinds in convolutions) == 1


@pytest.mark.slow
def test_bfloat16_computes_the_same_within_its_precision():
    """With the release's number of layers. The gradient's norm is that of this draw: on others, logarithms of a random
    network's spectra make it differ by up to 26 %."""
    codec = SYSTEM.bicodec
    decoder = WaveGeneratorConfig(codec.decoder.input_channel, codec.decoder.channels)
    speaker_encoder = dataclasses.replace(codec.speaker_encoder, res2_scale=SpeakerEncoderConfig.res2_scale)
    codec = dataclasses.replace(codec, decoder=decoder, speaker_encoder=speaker_encoder)
    system = dataclasses.replace(SYSTEM, bicodec=codec)
    history = {}
    for dtype in ("float32", "bfloat16"):
        state, step = start(dataclasses.replace(GAN, dtype=dtype), 1, adversarial=True, system=system)
        state, metrics = step(state, make_batch())
        history[dtype] = host(metrics)
    ours, theirs = history["bfloat16"], history["float32"]
    for name in ("loss", "mel", "vq", "features", "adversarial", "feature_matching", "discriminator", "grad_norm"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0.02, err_msg=name)
        assert ours[name] != theirs[name], name


@pytest.mark.gpu(place=9)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-3), ("bfloat16", 0.1)])
def test_a_step_on_a_gpu_is_the_cpus(gpu, cpu, dtype, tolerance):
    found = []
    with jax.default_matmul_precision("highest"):
        for mesh, kind in ((cpu, "float32"), (gpu, dtype)):
            state, step = start(dataclasses.replace(GAN, dtype=kind), mesh, adversarial=True)
            found.append(host(step(state, make_batch())[1]))
    theirs, ours = found
    for name in ("loss", "mel", "vq", "features", "adversarial", "feature_matching", "discriminator"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, err_msg=name)
    assert np.isfinite(ours["grad_norm"]) and ours["skipped"] == 0


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


def test_stopped_run_of_waveforms_resumes_exactly(tmp_path, monkeypatch):
    """The phase that compiles least: from tokens, without discriminators, with one resolution of the spectral loss.

    The others: the slow test below.
    """
    monkeypatch.setattr(losses, "MEL_WINDOWS", losses.MEL_WINDOWS[3:4])
    monkeypatch.setattr(losses, "MEL_BANDS", losses.MEL_BANDS[3:4])
    rng = np.random.default_rng(0)
    config = corpus_run(tmp_path)
    with (tmp_path / "tokens.jsonl").open("w") as lines:
        for i in range(12):
            speaker = rng.integers(0, 64, SYSTEM.bicodec.speaker_encoder.token_num).tolist()
            said = rng.integers(0, SYSTEM.bicodec.quantizer.codebook_size, (3000 + 500 * i) // 320).tolist()
            lines.write(json.dumps({"index": str(i), "global_ids": speaker, "semantic_ids": said}) + "\n")
    config = dataclasses.replace(
        GAN,
        corpus=config.corpus,
        model=config.model,
        phase="wave",
        freeze=(),
        adversarial_start=None,
        tokens=str(tmp_path / "tokens.jsonl"),
        mesh=MeshConfig(data=1),
    )
    whole_and_stopped(codec_run.train, config, tmp_path, after=2)
    whole, halves = (read_metrics(tmp_path / name) for name in ("whole", "halves"))
    assert [line["step"] for line in whole if line["group"] == "train"] == [1, 2, 3, 4]
    assert whole == halves
    assert equal(*(read_part(tmp_path / name, "bicodec") for name in ("whole", "halves")))


@pytest.mark.slow
def test_stopped_run_resumes_exactly(tmp_path):
    """Train 4 steps; train 2, resume to 4; the same metrics, validation included, and the same codec."""
    config = corpus_run(tmp_path)
    whole_and_stopped(codec_run.train, config, tmp_path, after=2)
    whole, halves = (read_metrics(tmp_path / name) for name in ("whole", "halves"))
    assert [line["step"] for line in whole if line["group"] == "train"] == [1, 2, 3, 4]
    assert whole == halves
    ours, theirs = (read_part(tmp_path / name, "bicodec") for name in ("whole", "halves"))
    assert equal(ours, theirs) and set(ours) == {"params", "batch_stats", "code_statistics"}

    # The part is a start for another run, and a wrong size is refused.
    mesh = sharding.make_mesh(1)
    models = codec_models(config, SYSTEM)
    state, shardings = sharding.initialize(mesh, lambda: init_state(models, config, SYSTEM))
    config = dataclasses.replace(config, init_from=str(tmp_path / "whole"))
    pretrained = codec_run.load_pretrained(state, config)
    state = with_pretrained(state, shardings, pretrained)
    assert equal(host(codec_variables(state)), ours)
    quantizer = dataclasses.replace(SYSTEM.bicodec.quantizer, codebook_size=32)
    smaller = dataclasses.replace(SYSTEM, bicodec=dataclasses.replace(SYSTEM.bicodec, quantizer=quantizer))
    models = codec_models(config, smaller)
    fresh = jax.eval_shape(lambda: sharding.unbox(init_state(models, config, smaller)))
    with pytest.raises(SparkError, match="codebook"):
        codec_run.load_pretrained(fresh, config)


def test_parts_are_checked():
    with pytest.raises(SparkError, match=r"dead_code_reset.every is 2, expected 0: the quantizer is frozen"):
        _ = dataclasses.replace(FEATURES, freeze=("quantizer",)).frozen_parts
    assert dataclasses.replace(GAN, phase="features").frozen_parts == ("encoder", "wave_generator", "pitch_head")
    voices = dataclasses.replace(GAN, phase="wave", reference_clips=True)
    assert voices.frozen_parts == ("encoder", "quantizer", "postnet")
    assert dataclasses.replace(voices, freeze=("speaker_encoder",)).frozen_parts[-2:] == ("speaker_encoder", "postnet")
    with pytest.raises(SparkError, match="reference_clips: phase is 'full', expected \"wave\""):
        _ = dataclasses.replace(voices, phase="full").frozen_parts
    with pytest.raises(SparkError, match="freeze: unknown part 'decoder'"):
        _ = dataclasses.replace(GAN, freeze=("decoder",)).frozen_parts


def as_lists(value):
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, tuple) else value
