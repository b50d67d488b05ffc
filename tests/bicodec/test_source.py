"""The harmonic source: its phase, its channels, and a wave generator with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.bicodec.source import (
    CYCLE,
    Anchor,
    Pitch,
    SourceMix,
    interpolate,
    phase_starts,
    pulse_train,
    sample_steps,
    source_channels,
    source_noise,
)
from spark_jax.bicodec.wave_generator import WaveGenerator
from spark_jax.config import BiCodecConfig, SourceConfig, WaveGeneratorConfig, from_mapping, to_mapping
from spark_jax.errors import SparkError

RATES, HOP, RATE = (8, 5, 4, 2), 320, 16_000
SMALL = WaveGeneratorConfig(input_channel=6, channels=16, rates=(4, 2), kernel_sizes=(8, 4))
VOICED = dataclasses.replace(SMALL, source=SourceConfig(blocks=(0, 1), noise_blocks=(1,)))


def contour(frames, seed=0):
    """A pitch in Hz that glides as speech does, [1, frames]."""
    steps = np.random.default_rng(seed).normal(0, 0.05, frames)
    return jnp.asarray(150 * np.exp(np.cumsum(steps)), jnp.float32)[None]


def test_interpolation_passes_through_the_middles_and_holds_the_ends():
    values = jnp.asarray([[1.0, 3.0, 2.0]])
    samples = interpolate(values, 4).reshape(-1)
    np.testing.assert_allclose(samples, [1, 1, 1.25, 1.75, 2.25, 2.75, 2.875, 2.625, 2.375, 2.125, 2, 2], atol=1e-6)
    masked = interpolate(values, 4, jnp.asarray([[True, True, False]]))
    np.testing.assert_allclose(masked[0, 1], [2.25, 2.75, 3, 3], atol=1e-6)


def test_the_phase_of_a_constant_pitch_is_that_of_a_sine():
    frames, f0 = 100, 123.4
    starts = phase_starts(jnp.full((1, frames), f0 / RATE), HOP)
    expected = np.arange(frames + 1) * HOP * f0 / RATE % 1.0
    distance = (np.asarray(starts[0]) / CYCLE - expected + 0.5) % 1.0 - 0.5
    assert np.max(np.abs(distance)) < 1e-3  # of a cycle, after two seconds: a float32 rounds 123.4 / 16000


def test_ten_minutes_lose_no_phase():
    frames = 30_000
    starts = phase_starts(jnp.broadcast_to(contour(frames), (1, frames)) / RATE, HOP)
    steps = np.asarray(sample_steps(contour(frames) / RATE, HOP), np.uint64)
    assert int(starts[0, -1]) == int(steps.sum()) % 2**32


def test_parts_with_one_frame_of_context_have_the_phase_of_the_whole_bit_for_bit():
    frequency, count = contour(40) / RATE, 40
    whole = np.asarray(phase_starts(frequency, HOP))
    phase, place = jnp.zeros(1, jnp.uint32), 0
    for end in (7, 8, 21, 40):
        first, last = max(place - 1, 0), min(end + 1, count)
        anchor = Anchor(phase, jnp.int32(place), origin=place - first)
        starts = phase_starts(frequency[:, first:last], HOP, anchor=anchor)
        ours = np.asarray(starts[:, anchor.origin : anchor.origin + end - place + 1])
        np.testing.assert_array_equal(ours, whole[:, place : end + 1])
        phase, place = jnp.asarray(ours[:, -1]), end


def test_the_pulse_train_is_the_sum_of_its_harmonics_and_continuous_in_the_pitch():
    cycles = jnp.linspace(0, 2, 500)
    for frequency in (0.0131, 0.0999, 0.31):
        count = 0.5 / frequency
        weights = np.clip(count - np.arange(0, int(count) + 1), 0, 1)
        harmonics = np.cos(2 * np.pi * np.outer(cycles, np.arange(1, len(weights) + 1)))
        expected = harmonics @ weights * np.sqrt(2 / count)
        np.testing.assert_allclose(pulse_train(cycles, jnp.float32(frequency)), expected, atol=2e-3)
    edge = 0.5 / 7
    below, above = (pulse_train(cycles, jnp.float32(edge * factor)) for factor in (0.99999, 1.00001))
    np.testing.assert_allclose(below, above, atol=1e-2)
    assert pulse_train(jnp.zeros(1), jnp.float32(0.05)) == pytest.approx(10 * np.sqrt(2 / 10), abs=1e-3)


def test_channels_have_the_asked_fundamental_at_every_rate_and_are_silent_where_unvoiced():
    f0, frames = 210.0, 50  # 200 would put a harmonic onto half of every sample rate
    voicing = jnp.asarray(np.arange(frames)[None] < 40, jnp.float32)
    channels = jax.jit(lambda *pitch: source_channels(SourceConfig(), *pitch, RATES))(
        jnp.full((1, frames), f0 / RATE), voicing
    )
    assert {block: x.shape for block, x in channels.items()} == {
        1: (1, 2000, 4),
        2: (1, 8000, 5),
        3: (1, 16000, 5),
    }
    for x in channels.values():
        second = np.asarray(x[0])
        sine, cosine, pulse, loudness = second.T[:4]
        voiced = len(second) * 39 // 50
        spectrum = np.abs(np.fft.rfft(sine[:voiced] * np.hanning(voiced)))
        assert np.argmax(spectrum) * len(second) / voiced == pytest.approx(f0, abs=2)
        np.testing.assert_allclose((sine**2 + cosine**2)[:voiced], 1, atol=1e-4)
        assert np.mean(pulse[:voiced] ** 2) == pytest.approx(1, rel=0.15)
        silent = len(second) * 41 // 50
        assert not np.any(second[silent:, :4]) and loudness[0] == 1
    # The blocks agree on when a cycle begins, up to a sample of the coarser one.
    coarse, fine = np.asarray(channels[1][0, :, 0]), np.asarray(channels[3][0, :, 0]).reshape(-1, 8).mean(1)
    assert np.corrcoef(coarse[:1500], fine[:1500])[0, 1] > 0.999


def test_noise_follows_the_number_of_a_frame_alone():
    whole = source_noise(9, 16, stream=2)
    anchor = Anchor(jnp.zeros(1, jnp.uint32), jnp.int32(4), origin=1)
    np.testing.assert_array_equal(source_noise(5, 16, 2, anchor), whole[3:8])
    assert abs(float(np.corrcoef(whole.reshape(-1), source_noise(9, 16, 3).reshape(-1))[0, 1])) < 0.3
    assert not np.array_equal(whole, source_noise(9, 16, 2, key=jax.random.key(5)))


@pytest.fixture(scope="module")
def generator():
    model = WaveGenerator(VOICED)
    latents = jax.random.normal(jax.random.key(0), (1, 48, 6))
    pitch = Pitch(contour(48), jnp.asarray(np.arange(48)[None] % 7 > 1, jnp.float32))
    variables = jax.jit(model.init)(jax.random.key(1), latents, None, pitch)
    # Large enough to be heard through a fresh generator.
    params = dict(variables["params"])
    for name in ("block_0", "block_1"):
        params[name] = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * 20 if "source" in str(path) else leaf, params[name]
        )
    return model, {"params": params}, latents, pitch


def test_parameters_are_the_release_s_and_few_more(generator):
    _, variables, latents, pitch = generator
    plain = jax.eval_shape(WaveGenerator(SMALL).init, jax.random.key(0), latents)["params"]
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count(variables["params"]) - count(plain) == 8 * 4 + 4 * 5
    config = dataclasses.replace(SMALL, channels=192, rates=RATES, kernel_sizes=(16, 11, 8, 4), source=SourceConfig())
    real = jax.eval_shape(WaveGenerator(config).init, jax.random.key(0), latents, None, pitch)["params"]
    assert sum(count(real[f"block_{i}"].get("source", {})) for i in range(4)) == 372


def test_first_weights_are_small():
    variables = SourceMix().init(jax.random.key(1), jnp.zeros((1, 2, 6)), jnp.zeros((1, 2, 5)))
    (weights,) = jax.tree.leaves(variables)
    assert weights.shape == (5, 6) and 0.01 < np.max(np.abs(weights)) <= 0.02 and np.min(weights) < 0


def test_padding_changes_nothing(generator):
    model, variables, latents, pitch = generator
    run = jax.jit(lambda x, mask, f0, v: model.apply(variables, x, mask, Pitch(f0, v)))
    alone = run(latents[:, :17], None, pitch.f0[:, :17], pitch.voicing[:, :17])
    mask = jnp.arange(48)[None] < 17
    other = jnp.where(mask, pitch.f0, 900.0)
    padded = run(latents, mask, other, jnp.where(mask, pitch.voicing, 1.0))
    np.testing.assert_allclose(padded[:, : 17 * 8], alone, atol=1e-6)
    assert not np.any(padded[:, 17 * 8 :])


@pytest.mark.extended
def test_parts_give_the_samples_of_the_whole(generator):
    """With more context than the convolutions hear: 20 frames of 8 samples."""
    model, variables, latents, pitch = generator

    @jax.jit
    def run(latents, f0, voicing, anchor):
        return model.apply(variables, latents, None, Pitch(f0, voicing), anchor=anchor)

    hop, context, place = 8, 24, 30
    whole = run(latents, pitch.f0, pitch.voicing, None)[:, place * hop :]
    starts = phase_starts(pitch.f0 / RATE, hop)[:, place]
    rest = [x[:, place - context :] for x in (latents, pitch.f0, pitch.voicing)]
    part = run(*rest, Anchor(starts, jnp.int32(place), origin=context))[:, context * hop :]
    np.testing.assert_allclose(part, whole, atol=1e-5)
    late = run(*rest, Anchor(starts + np.uint32(2**31), jnp.int32(place), origin=context))[:, context * hop :]
    assert np.max(np.abs(late - whole)) > 1e-3


def test_a_source_without_pitch_is_an_error_and_a_pitch_without_source_is_not_heard(generator):
    model, variables, latents, pitch = generator
    with pytest.raises(ValueError, match="no pitch"):
        model.apply(variables, latents)
    plain = WaveGenerator(SMALL)
    own = jax.jit(plain.init)(jax.random.key(0), latents)
    run = jax.jit(plain.apply)
    np.testing.assert_array_equal(run(own, latents), run(own, latents, None, pitch))


@pytest.mark.extended
def test_remat_changes_no_sample(generator):
    model, variables, latents, pitch = generator
    again = jax.jit(WaveGenerator(VOICED, remat=True).apply)(variables, latents, None, pitch)
    np.testing.assert_allclose(again, jax.jit(model.apply)(variables, latents, None, pitch), atol=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"blocks": [1, 4]}, r"source: blocks is \(1, 4\), expected some of 0, 1, 2, 3"),
        ({"blocks": []}, "source: blocks is"),
        ({"blocks": 2}, "blocks is 2, expected a list"),
        ({"noise_blocks": [0]}, r"noise_blocks is \(0,\), expected some of its blocks"),
        ({"harmonics": 3}, "harmonics"),
        (True, "source"),
    ],
)
def test_bad_configurations_are_named(source, message):
    with pytest.raises(SparkError, match=message):
        from_mapping(BiCodecConfig, {"decoder": {"source": source}}, "x.yaml")


def test_a_configuration_with_a_source_is_read_as_it_is_written():
    for source in (None, SourceConfig(blocks=(2, 3), noise_blocks=())):
        config = BiCodecConfig(decoder=WaveGeneratorConfig(source=source))
        assert from_mapping(BiCodecConfig, to_mapping(config), "x") == config
