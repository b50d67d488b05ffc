"""The phases of the codec's training without discriminators: features, whole utterances, waveform from tokens."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.quick_compile import quick_jit
from helpers.tiny_codec_training import FEATURES, GAN, SYSTEM, VOICED_SYSTEM, equal, host, make_batch, start

from spark_jax.bicodec import losses
from spark_jax.training.codec.config import LossWeights
from spark_jax.training.codec.evaluation import codec_evaluation
from spark_jax.training.codec.models import codec_models


@pytest.mark.extended
def test_frozen_statistics():
    config = dataclasses.replace(GAN, freeze=("encoder", "quantizer", "speaker_encoder"), phase="features")
    state, step = start(config, 1, adversarial=False)
    before = host(state)
    state, metrics = step(state, make_batch())
    assert equal(host(state.collections), before.collections)
    assert set(state.params["generator"]) == {"prenet", "postnet"}
    assert "discriminator" not in state.params and "mel" not in metrics
    assert equal(host(state.params["frozen"]), before.params["frozen"])


@pytest.mark.extended
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
    # The speaker encoder hears the reference clip, which is not padded; frozen it costs no time to compile.
    config = dataclasses.replace(
        GAN, phase="features", losses=LossWeights(codes=1.0), freeze=("encoder", "speaker_encoder")
    )
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


@pytest.mark.extended
def test_waveform_from_tokens():
    """Phase "wave": prenet and wave generator alone, on given ids, without a feature extractor; on eight devices the
    same as on one (so are both players, on every mesh: test_mesh.py)."""
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
    history = []
    for _ in range(3):
        state, metrics = step(state, batch)
        history.append(host(metrics))
    assert history[2]["mel"] < history[0]["mel"]
    assert set(metrics) == {"loss", "mel", "grad_norm", "skipped", "audio_seconds"}
    shared, step = start(config, 8, adversarial=False)
    for expected in history:
        shared, metrics = step(shared, batch)
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-3 if name == "grad_norm" else 1e-4, err_msg=name)
    assert equal(host(state.params["frozen"]), before.params["frozen"])
    assert equal(host(state.collections), before.collections)


def voiced_batch():
    rng = np.random.default_rng(0)
    f0 = np.where(rng.random((8, 5)) < 0.7, rng.uniform(80, 300, (8, 5)), 0).astype(np.float32)
    return {
        "wave": rng.normal(0, 0.3, (8, 1600)).astype(np.float32),
        "semantic_ids": rng.integers(0, SYSTEM.bicodec.quantizer.codebook_size, (8, 5), np.int32),
        "reference": rng.normal(0, 0.3, (8, SYSTEM.ref_segment_samples)).astype(np.float32),
        "f0": f0,
        "f0_filled": np.maximum(f0, 80),
        "f0_mean": rng.uniform(80, 300, 8).astype(np.float32),
    }


@pytest.mark.extended
def test_voices_and_pitch_are_trained_with_the_waveform(monkeypatch):
    """Phase "wave" of a codec with a harmonic source, from reference clips: the speaker branch and the pitch head learn
    too, and at the validation the source is given what the codec predicts."""
    monkeypatch.setattr(losses, "MEL_WINDOWS", losses.MEL_WINDOWS[3:4])  # less to compile
    monkeypatch.setattr(losses, "MEL_BANDS", losses.MEL_BANDS[3:4])
    weights = LossWeights(f0=0.5, voicing=0.25, mean_f0=0.75, repetition=0.5)
    config = dataclasses.replace(
        GAN, phase="wave", freeze=(), adversarial_start=None, reference_clips=True, losses=weights
    )
    state, step = start(config, 1, False, VOICED_SYSTEM)
    before = host(state)
    assert set(state.params["generator"]) == {"prenet", "wave_generator", "pitch_head", "speaker_encoder"}
    batch, history = voiced_batch(), []
    for _ in range(2):
        state, metrics = step(state, batch)
        history.append(host(metrics))
    first, second = history
    terms = {"mel": 15.0, "f0": 0.5, "voicing": 0.25, "mean_f0": 0.75, "repetition": 0.5}
    assert set(first) == {"loss", *terms, "grad_norm", "skipped", "audio_seconds"}
    np.testing.assert_allclose(first["loss"], sum(weight * first[name] for name, weight in terms.items()), rtol=1e-5)
    assert second["voicing"] < first["voicing"] and second["mean_f0"] < first["mean_f0"]
    after = host(state)
    for name, part in after.params["generator"].items():
        assert not equal(part, before.params["generator"][name]), name
    assert equal(after.params["frozen"], before.params["frozen"])
    assert not equal(after.collections["batch_stats"], before.collections["batch_stats"])
    assert equal(after.collections["code_statistics"], before.collections["code_statistics"])

    models = codec_models(config, VOICED_SYSTEM)
    evaluate = quick_jit(codec_evaluation(models, config, VOICED_SYSTEM))
    ours, told = evaluate(after, batch), evaluate(after, batch | {"f0_filled": 2 * batch["f0_filled"]})
    assert {"voicing_accuracy", "f0_semitones", "mean_f0_semitones", *terms} < set(ours)
    np.testing.assert_array_equal(ours["samples"], told["samples"])


@pytest.mark.extended
def test_revival_puts_dead_codes_onto_latents():
    state, step = start(dataclasses.replace(FEATURES, freeze=("speaker_encoder", "prenet")), 1, adversarial=False)
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
