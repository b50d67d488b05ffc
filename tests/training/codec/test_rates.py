"""A codec at another rate than the release's: its losses hear the spectrum of that rate."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.quick_compile import OPTIONS
from helpers.tiny_codec_training import GAN, SYSTEM, start

from spark_jax import sharding
from spark_jax.bicodec import losses
from spark_jax.config import WaveGeneratorConfig
from spark_jax.training.codec.models import codec_models
from spark_jax.training.codec.step import codec_step

RATE, HOP = 24_000, 480
AT_24_KHZ = dataclasses.replace(
    SYSTEM,
    sample_rate=RATE,
    latent_hop_length=HOP,
    bicodec=dataclasses.replace(
        SYSTEM.bicodec,
        mel_params=dataclasses.replace(SYSTEM.bicodec.mel_params, sample_rate=RATE),
        decoder=WaveGeneratorConfig(input_channel=24, channels=16, rates=(HOP,), kernel_sizes=(2 * HOP,)),
    ),
    wav2vec2=dataclasses.replace(SYSTEM.wav2vec2, conv_stride=(5, 3, 2, 2, 2, 2, 2)),
)
WAVE = dataclasses.replace(GAN, phase="wave", freeze=(), adversarial_start=None)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "wave": rng.normal(0, 0.3, (8, 5 * HOP)).astype(np.float32),
        "semantic_ids": rng.integers(0, SYSTEM.bicodec.quantizer.codebook_size, (8, 5), np.int32),
        "global_ids": rng.integers(0, 64, (8, SYSTEM.bicodec.speaker_encoder.token_num), np.int32),
    }


def constants(jaxpr):
    """All arrays that a traced program has in it, those of its inner programs included."""
    yield from (np.asarray(value) for value in jaxpr.consts)
    for equation in jaxpr.jaxpr.eqns:
        for value in equation.params.values():
            if isinstance(value, jax.extend.core.ClosedJaxpr):
                yield from constants(value)


@pytest.mark.extended
def test_a_step_at_24_khz_trains_on_the_spectrum_of_24_khz(batch):
    """The very program that is run has the filterbanks of its rate in it, and those of no other."""
    models, mesh = codec_models(WAVE, AT_24_KHZ), sharding.make_mesh(1)
    state, _ = start(WAVE, 1, False, AT_24_KHZ)
    before = np.array(state.params["generator"]["prenet"]["linear_out"]["kernel"])
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = sharding.jit_step(codec_step(models, WAVE, AT_24_KHZ, False), mesh, shardings)
    traced = step.trace(state, sharding.put_batch(mesh, batch))
    found = list(constants(traced.jaxpr))
    for window, bands in zip(losses.MEL_WINDOWS, losses.MEL_BANDS, strict=True):
        banks = {rate: losses.filterbank(window, bands, rate) for rate in (RATE, 16_000)}
        has = {rate: any(np.array_equal(bank, value) for value in found) for rate, bank in banks.items()}
        assert has == {RATE: True, 16_000: False}, window
    state, metrics = traced.lower().compile(OPTIONS)(state, sharding.put_batch(mesh, batch))
    assert float(metrics["mel"]) > 0 and float(metrics["skipped"]) == 0
    assert float(metrics["audio_seconds"]) == pytest.approx(8 * 0.1)
    assert not np.array_equal(state.params["generator"]["prenet"]["linear_out"]["kernel"], before)
