"""The pitch head on wav2vec2 features."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.quick_compile import quick_jit
from helpers.tiny_config import tiny

from spark_jax.wav2vec2.ctc import Wav2Vec2ForCTC
from spark_jax.wav2vec2.model import Wav2Vec2
from spark_jax.wav2vec2.pitch import FeaturePitch, feature_pitch_losses, feature_pitch_sums, relative_pitch

F0 = jnp.asarray([[100.0, 0.0, 200.0, 150.0], [0.0, 0.0, 0.0, 0.0]])
VALID = jnp.asarray([[True, True, True, False], [True, True, False, False]])


def test_pitch_is_relative_to_the_voiced_frames_of_its_utterance():
    relative, voiced = relative_pitch(F0, VALID)
    np.testing.assert_array_equal(voiced, [[True, False, True, False], [False] * 4])
    octave = np.log(2.0) / 0.2
    np.testing.assert_allclose(relative, [[-octave / 2, 0, octave / 2, 0], [0] * 4], atol=1e-5)


def test_losses_and_sums_count_what_is_valid():
    relative, voiced = relative_pitch(F0, VALID)
    sure = FeaturePitch(relative.at[:, 3].set(99.0), jnp.where(voiced, 50.0, -50.0).at[:, 3].set(50.0))
    assert all(float(loss) == pytest.approx(0, abs=1e-6) for loss in feature_pitch_losses(sure, F0, VALID).values())
    off = FeaturePitch(sure.relative + 0.5, jnp.zeros_like(sure.voicing))
    losses = feature_pitch_losses(off, F0, VALID)
    assert float(losses["f0"]) == pytest.approx(0.25, rel=1e-4)
    assert float(losses["voicing"]) == pytest.approx(np.log(2.0), rel=1e-4)
    sums = {name: float(value) for name, value in feature_pitch_sums(off, F0, VALID).items()}
    assert (sums["valid"], sums["voiced"], sums["voicing_correct"]) == (5, 2, 3)
    assert sums["squared_error"] == pytest.approx(0.5, rel=1e-4)
    assert sums["squares"] == pytest.approx(2 * (np.log(2.0) / 0.4) ** 2, rel=1e-4)


def test_utterances_without_voice_give_finite_gradients():
    silent = FeaturePitch(jnp.ones((1, 4)), jnp.zeros((1, 4)))
    gradient = jax.grad(lambda p: sum(feature_pitch_losses(p, F0[1:], VALID[1:]).values()))(silent)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)) and not np.any(gradient.relative)


@pytest.mark.extended
def test_the_head_hears_the_features_and_changes_no_logit():
    config = dataclasses.replace(tiny().wav2vec2, conv_dim=(8,), conv_kernel=(400,), conv_stride=(320,))
    with_head, without = Wav2Vec2ForCTC(config, 7, pitch_head=True), Wav2Vec2ForCTC(config, 7)
    samples = jax.random.normal(jax.random.key(0), (2, 3200))
    lengths = jnp.asarray([3200, 2000])
    params = nn.meta.unbox(quick_jit(with_head.init)(jax.random.key(1), samples, lengths))["params"]
    plain = {name: part for name, part in params.items() if name != "pitch_head"}
    assert jax.tree.structure(plain) == jax.tree.structure(
        nn.meta.unbox(jax.eval_shape(without.init, jax.random.key(1), samples, lengths))["params"]
    )
    result = quick_jit(lambda p: with_head.apply({"params": p}, samples, lengths, method="recognize"))(params)
    logits, frames = quick_jit(lambda p: without.apply({"params": p}, samples, lengths))(plain)
    np.testing.assert_allclose(result.logits, logits, atol=1e-5)
    np.testing.assert_array_equal(result.frames, frames)
    layers = jax.tree.map(lambda leaf: leaf[: max(config.feature_layers)], plain["wav2vec2"]["layers"])
    extractor = {**plain["wav2vec2"], "layers": layers}
    features = quick_jit(lambda p: Wav2Vec2(config).apply({"params": p}, samples, lengths))(extractor)
    head = params["pitch_head"]["linear"]
    expected = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(jnp.stack([result.pitch.relative, result.pitch.voicing], axis=-1), expected, atol=1e-4)
    assert without.apply({"params": plain}, samples, lengths, method="recognize").pitch is None
