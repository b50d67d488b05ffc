"""The codec with a harmonic source: what it predicts, is told and learns of pitch."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_model
from helpers.quick_compile import quick_jit
from helpers.tiny_config import tiny

from spark_jax.bicodec.model import BiCodec
from spark_jax.bicodec.pitch import PitchPrediction, PitchTarget, pitch_errors, pitch_losses
from spark_jax.bicodec.source import Pitch
from spark_jax.config import SourceConfig
from spark_jax.model_directory import directory as model_directory

PLAIN = tiny().bicodec
VOICED = dataclasses.replace(
    PLAIN, decoder=dataclasses.replace(PLAIN.decoder, source=SourceConfig(blocks=(0, 1), noise_blocks=(1,)))
)
TARGET = PitchTarget(
    f0=jnp.asarray([[100.0, 0.0, 200.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
    filled=jnp.asarray([[100.0, 141.4, 200.0, 200.0], [150.0, 150.0, 150.0, 150.0]]),
    mean=jnp.asarray([np.sqrt(20_000.0), 0.0], jnp.float32),
)


def exact(target):
    """The prediction of a target: certain, and right."""
    known = target.mean > 0
    mean = jnp.log(jnp.where(known, target.mean, 1.0))
    frame = (jnp.log(target.filled) - mean[:, None]) / 0.2
    return PitchPrediction((mean - 5.0) / 0.4, frame, jnp.where(target.f0 > 0, 50.0, -50.0))


def test_losses_are_zero_for_the_truth_and_what_is_written_otherwise():
    prediction = exact(TARGET)
    assert all(float(value) == pytest.approx(0, abs=1e-6) for value in pitch_losses(prediction, TARGET).values())
    off = prediction.replace(
        frame=prediction.frame + 0.5, speaker=prediction.speaker - 2.0, voicing=jnp.zeros_like(prediction.voicing)
    )
    losses = pitch_losses(off, TARGET)
    assert float(losses["f0"]) == pytest.approx(0.25, rel=1e-4)
    assert float(losses["mean_f0"]) == pytest.approx(4.0, rel=1e-4)
    assert float(losses["voicing"]) == pytest.approx(np.log(2.0), rel=1e-4)


def test_padding_and_unvoiced_utterances_count_in_no_loss():
    prediction, mask = exact(TARGET), jnp.asarray([[True, True, False, False], [True, True, True, True]])
    odd = prediction.replace(
        frame=prediction.frame.at[0, 2:].add(9.0).at[1].add(9.0),
        speaker=prediction.speaker.at[1].add(9.0),
        voicing=prediction.voicing.at[0, 2:].set(-prediction.voicing[0, 2:]),
    )
    assert all(float(value) == pytest.approx(0, abs=1e-6) for value in pitch_losses(odd, TARGET, mask).values())
    silent = jax.tree.map(lambda x: x[1:], TARGET)
    part = jax.tree.map(lambda x: x[1:], prediction)
    losses, gradient = jax.value_and_grad(lambda p: sum(pitch_losses(p, silent).values()))(part)
    assert np.isfinite(losses) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_decisions_and_their_errors():
    prediction = exact(TARGET)
    decided = prediction.decide()
    np.testing.assert_allclose(decided.f0[0], TARGET.filled[0], rtol=5e-4)  # half a step of the table
    np.testing.assert_array_equal(decided.voicing, TARGET.f0 > 0)
    errors = pitch_errors(prediction, TARGET)
    assert float(errors["voicing_accuracy"]) == 1 and float(errors["f0_semitones"]) == pytest.approx(0, abs=0.009)
    semitone = np.log(2) / 12
    errors = pitch_errors(prediction.replace(speaker=prediction.speaker + semitone / 0.4), TARGET)
    assert float(errors["f0_semitones"]) == pytest.approx(1, abs=0.009)
    assert float(errors["mean_f0_semitones"]) == pytest.approx(1, rel=1e-3)


def random_variables(config):
    shapes = model_directory.abstract_variables(dataclasses.replace(tiny(), bicodec=config))["bicodec"]
    return jax.tree.map(jnp.asarray, tiny_model.draw(shapes))


@pytest.fixture(scope="module")
def voiced():
    return BiCodec(VOICED), random_variables(VOICED)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return {
        "semantic_ids": jnp.asarray(rng.integers(64, size=(2, 6))),
        "global_ids": jnp.asarray(rng.integers(64, size=(2, 32))),
        "reference": jnp.asarray(np.stack([tiny_model.speech(0.5, seed) for seed in (1, 2)]), jnp.float32),
        "features": jnp.asarray(rng.standard_normal((2, 6, 16)), jnp.float32),
        "target": PitchTarget(jnp.full((2, 6), 120.0), jnp.full((2, 6), 120.0), jnp.full(2, 120.0)),
    }


def test_without_a_source_the_codec_is_as_ever():
    codec, variables = BiCodec(PLAIN), random_variables(PLAIN)
    parameters = variables["params"]
    assert "pitch_head" not in parameters
    assert not any("source" in part for part in parameters["wave_generator"].values())
    ids = jnp.zeros((1, 6), jnp.int32), jnp.zeros((1, 32), jnp.int32)
    with pytest.raises(ValueError, match="no harmonic source"):
        codec.apply(variables, *ids, method="predict_pitch")


def test_the_predicted_pitch_is_what_detokenize_tells_its_source(voiced, inputs):
    codec, variables = voiced
    ids = inputs["semantic_ids"], inputs["global_ids"]
    pitch = quick_jit(lambda v, *a: codec.apply(v, *a, method="predict_pitch"))(variables, *ids)
    assert pitch.f0.shape == pitch.voicing.shape == (2, 6)
    run = quick_jit(lambda v, a, b, p: codec.apply(v, a, b, pitch=p, method="detokenize"))
    wave = run(variables, *ids, None)
    np.testing.assert_allclose(run(variables, *ids, pitch), wave, atol=1e-6)
    other = Pitch(pitch.f0 * 1.5, jnp.ones_like(pitch.voicing))
    assert np.max(np.abs(run(variables, *ids, other) - wave)) > 1e-4


@pytest.mark.extended
def test_padding_changes_neither_pitch_nor_samples(voiced, inputs):
    codec, variables = voiced
    run = quick_jit(lambda v, a, b, m: codec.apply(v, a, b, m, method="detokenize"))
    ids, speaker = inputs["semantic_ids"][:1], inputs["global_ids"][:1]
    padded = run(variables, ids, speaker, jnp.arange(6)[None] < 4)
    np.testing.assert_allclose(padded[:, :1280], run(variables, ids[:, :4], speaker, None), atol=1e-5)


@pytest.mark.extended
def test_training_tells_the_source_the_recording_s_pitch_and_both_losses_reach_their_parts(voiced, inputs):
    codec, variables = voiced

    def losses(params, pitch):
        everything, ids = {**variables, "params": params}, inputs["semantic_ids"]
        reconstruct = partial(codec.apply, method="wave_from_codes", train=False)
        wave, prediction = reconstruct(everything, ids, inputs["reference"], pitch=pitch)
        terms = pitch_losses(prediction, inputs["target"])
        return jnp.mean(jnp.square(wave)), sum(terms.values())

    @quick_jit
    def gradients(params):
        _, pullback = jax.vjp(lambda p: losses(p, inputs["target"]), params)
        return tuple(pullback(which)[0] for which in ((1.0, 0.0), (0.0, 1.0)))

    wave_gradient, pitch_gradient = gradients(variables["params"])
    # No gradient of the waveform goes through the pitch.
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(wave_gradient["pitch_head"]))
    assert np.any(wave_gradient["wave_generator"]["block_1"]["source"]["mix"]["kernel"])
    assert any(np.any(leaf) for leaf in jax.tree.leaves(wave_gradient["speaker_encoder"]))
    for part in ("pitch_head", "prenet", "speaker_encoder"):
        assert any(np.any(leaf) for leaf in jax.tree.leaves(pitch_gradient[part]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(pitch_gradient["wave_generator"]))


@pytest.mark.extended
def test_the_full_pass_predicts_too(voiced, inputs):
    codec, variables = voiced
    run = quick_jit(lambda v, f, r, p: codec.apply(v, f, r, train=False, pitch=p))
    told = run(variables, inputs["features"], inputs["reference"], inputs["target"])
    own = run(variables, inputs["features"], inputs["reference"], None)
    np.testing.assert_array_equal(told.pitch.frame, own.pitch.frame)
    assert told.recons.shape == (2, 1920) and not np.array_equal(told.recons, own.recons)
