"""What a part of speech needs around it: as computed from the sizes and as seen; parts that make up the whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config, tiny_model

from spark_jax import config
from spark_jax.bicodec.model import BiCodec
from spark_jax.bicodec.receptive_field import Context, generator_context, prenet_context
from spark_jax.config import SourceConfig
from spark_jax.model_directory.parameters import abstract_part

PLAIN = tiny_config.tiny().bicodec
HOP = tiny_config.tiny().latent_hop_length
FASTER = dataclasses.replace(  # two frames a token, and a kernel that is long for its rate
    PLAIN,
    prenet=dataclasses.replace(PLAIN.prenet, sample_ratios=(2,)),
    decoder=dataclasses.replace(PLAIN.decoder, rates=(4, 40), kernel_sizes=(22, 80)),
)
VOICED = dataclasses.replace(FASTER, decoder=dataclasses.replace(FASTER.decoder, source=SourceConfig((0, 1), (1,))))
CODECS = {"plain": PLAIN, "faster": FASTER, "voiced": VOICED}


@functools.cache
def drawn(name):
    """A codec's function from ids to samples, compiled, and what it is of."""
    codec = BiCodec(CODECS[name])
    variables = jax.tree.map(jnp.asarray, tiny_model.draw(abstract_part("bicodec", CODECS[name])))
    whole = jax.jit(lambda ids, speakers: codec.apply(variables, ids, speakers, method="detokenize"))
    return codec, variables, whole


def ids(rows, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 64, (rows, count)).astype(np.int32), rng.integers(0, 64, (rows, 32)).astype(np.int32)


def test_of_the_release():
    release = config.RELEASE.bicodec
    assert prenet_context(release.prenet) == Context(57, 57)
    assert generator_context(release) == Context(10, 10)


@pytest.mark.parametrize("name", ["plain", "faster"])
def test_a_token_changes_the_samples_within_the_context_and_no_others(name):
    _, _, whole = drawn(name)
    prenet, generator = prenet_context(CODECS[name].prenet), generator_context(CODECS[name])
    before, after = prenet.before + generator.before, prenet.after + generator.after
    place = after + 3
    said, speakers = ids(1, place + before + 4)
    changed = said.copy()
    changed[:, place] = (changed[:, place] + 1) % 64
    samples = np.asarray(whole(np.concatenate([said, changed]), np.concatenate([speakers] * 2)))
    moved = np.flatnonzero(np.any((samples[0] != samples[1]).reshape(-1, HOP), axis=1))
    assert moved[0] == place - after and moved[-1] == place + before


@pytest.mark.parametrize("name", ["plain", "voiced"])
def test_parts_make_up_the_whole(name):
    codec, variables, whole = drawn(name)
    prenet, generator = prenet_context(CODECS[name].prenet), generator_context(CODECS[name])
    before, after, size, count = prenet.before + generator.before, prenet.after + generator.after, 16, 44
    said, speakers = ids(2, count)
    part = jax.jit(
        lambda *arrays: codec.apply(variables, *arrays, prenet, generator, method="detokenize_part"),
    )
    expected = np.asarray(whole(said, speakers))
    phase, found = jnp.zeros(2, jnp.uint32), []
    for place in range(0, count, size):
        places = np.arange(place - before, place + size + after)
        known = np.broadcast_to((places >= 0) & (places < count), (2, len(places)))
        window = np.where(known, said[:, np.clip(places, 0, count - 1)], 63).astype(np.int32)
        at = np.full(2, place, np.int32)
        samples, phase = part(window, speakers, known, phase, at, np.full(2, size, np.int32))
        found.append(samples)
    joined = np.concatenate(found, axis=1)
    np.testing.assert_allclose(joined[:, : count * HOP], expected, atol=1e-6)
    assert not np.any(joined[:, count * HOP :]) and np.std(expected) > 0.003
    if name == "voiced":  # the phase matters
        wrong, _ = part(window, speakers, known, phase + np.uint32(2**30), at, np.full(2, size, np.int32))
        assert np.max(np.abs(wrong - found[-1])) > 1e-3
