"""The codec's blocks and the discriminators, computed again for the gradient: the same gradient, less kept."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.bicodec.decoder import Decoder
from spark_jax.bicodec.discriminator import Discriminators
from spark_jax.bicodec.model import BiCodec
from spark_jax.bicodec.wave_generator import WaveGenerator
from spark_jax.config import DiscriminatorConfig

SYSTEM = tiny()
SMALL = DiscriminatorConfig(
    periods=(3,),
    period_channels=(4, 4),
    fft_sizes=(128,),
    hop_lengths=(32,),
    window_lengths=(100,),
    bands=(0.0, 0.5, 1.0),
    spectral_channels=2,
)


QUICK = {"xla_backend_optimization_level": 0}  # what is compiled runs once


def kept_bytes(loss, params):
    """What JAX hands to the backward pass.

    XLA's CPU backend merges the two computations again: its temporary memory shows nothing.
    """
    residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


def check(make_model, share, *inputs):
    """`make_model(remat)` on inputs: equal gradients; of what is kept for them at most a share is left."""
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32) for shape in inputs]
    init = jax.jit(lambda: make_model(False).init(jax.random.key(0), *inputs), compiler_options=QUICK)
    variables = sharding.unbox(init())

    def loss(remat):
        return lambda params: sum(
            jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(make_model(remat).apply(params, *inputs))
        )

    ours, theirs = (jax.jit(jax.grad(loss(remat)), compiler_options=QUICK)(variables) for remat in (True, False))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-9
    assert kept_bytes(loss(True), variables) < share * kept_bytes(loss(False), variables)


@pytest.mark.extended
def test_wave_generator():
    config = dataclasses.replace(SYSTEM.bicodec.decoder, rates=(4, 2), kernel_sizes=(8, 4))
    check(lambda remat: WaveGenerator(config, remat=remat), 0.5, (1, 2, config.input_channel))


@pytest.mark.extended
def test_vocos_blocks():
    config = SYSTEM.bicodec.postnet
    check(lambda remat: Decoder(config, remat=remat), 0.8, (1, 8, config.input_channels))


@pytest.mark.extended
def test_discriminators():
    check(lambda remat: Discriminators(SMALL, remat), 0.8, (2, 800))


@pytest.mark.extended
def test_the_codec_hands_it_on():
    features = jnp.zeros((1, 8, SYSTEM.wav2vec2.hidden_size))
    reference = jnp.zeros((1, SYSTEM.ref_segment_samples))

    def kept(remat):
        model = BiCodec(SYSTEM.bicodec, remat=remat)
        boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), features, reference, train=False))
        outputs = lambda variables: model.apply(variables, features, reference, train=False)  # noqa: E731
        return kept_bytes(lambda variables: outputs(variables).recons, sharding.unbox(boxed))

    assert kept(True) < 0.9 * kept(False)
