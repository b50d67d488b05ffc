"""The CTC loss against a sum over all alignments, greedy decoding, and padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.quick_compile import quick_jit
from helpers.tiny_config import tiny

from spark_jax.wav2vec2 import ctc, model

TINY = tiny().wav2vec2


def collapse(path):
    return [token for token, _ in itertools.groupby(path) if token != ctc.BLANK]


def test_loss_is_the_probability_of_all_alignments_per_token():
    logits = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))[0]
    target = [1, 2]
    paths = (path for path in itertools.product(range(3), repeat=4) if collapse(path) == target)
    total = sum(np.exp(sum(log_probabilities[t, token] for t, token in enumerate(path))) for path in paths)
    loss = jax.jit(ctc.ctc_loss)(logits, jnp.array([4]), jnp.array([target]), jnp.array([2]))
    np.testing.assert_allclose(loss, -np.log(total) / 2, rtol=1e-5)


def test_padding_does_not_change_the_loss():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 9, 5)).astype(np.float32)
    frames, targets, lengths = np.array([9, 6]), np.array([[1, 2, 2], [4, 3, 9]]), np.array([3, 2])
    loss = jax.jit(ctc.ctc_loss)
    singles = [
        loss(logits[i : i + 1, : frames[i]], frames[[i]], targets[[i], : lengths[i]], lengths[[i]]) for i in range(2)
    ]
    np.testing.assert_allclose(loss(logits, frames, targets, lengths), np.mean(singles), rtol=1e-6)
    # An empty row, as a padded batch has it, counts for nothing and has no gradient.
    padded = np.concatenate([logits, logits[:1]])
    value, gradient = jax.jit(jax.value_and_grad(ctc.ctc_loss))(
        padded, np.array([9, 6, 0]), np.concatenate([targets, targets[:1]]), np.array([3, 2, 0])
    )
    np.testing.assert_allclose(value, np.mean(singles), rtol=1e-6)
    assert np.all(gradient[2] == 0) and np.all(np.isfinite(gradient))


def test_greedy_decode_drops_repeats_blanks_and_padding():
    paths = np.array([[1, 1, 0, 1, 2, 2, 3], [0, 2, 2, 0, 0, 3, 3], [1, 1, 1, 1, 1, 1, 1]])
    logits = np.eye(4)[paths]
    assert ctc.greedy_decode(logits, np.array([6, 4, 0])) == [[1, 1, 2], [2], []]


@pytest.mark.extended
def test_logits_of_a_padded_batch_equal_single_items_and_gradients_are_finite():
    module = ctc.Wav2Vec2ForCTC(TINY, vocab_size=5)
    samples = np.random.default_rng(0).normal(size=(2, 4000)).astype(np.float32)
    lengths = np.array([4000, 2500])
    variables = quick_jit(module.init)(jax.random.key(0), samples)
    extractor = nn.meta.unbox(variables)["params"]["wav2vec2"]
    assert extractor["layers"]["layer"]["up"]["kernel"].shape[0] == 3
    position = extractor["positional_conv"]  # at the start the weight norm changes nothing
    np.testing.assert_allclose(position["g"], np.linalg.norm(position["v"], axis=(1, 2)), rtol=1e-5)

    def loss(variables, inputs, lengths):
        logits, frames = module.apply(variables, inputs, lengths)
        return ctc.ctc_loss(logits, frames, jnp.array([[1, 2], [3, 1]]), jnp.array([2, 2])), (logits, frames)

    inputs = model.normalize_input(samples, lengths)
    gradients, (logits, frames) = quick_jit(jax.grad(loss, has_aux=True))(variables, inputs, lengths)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    for i, length in enumerate(lengths):
        single, count = quick_jit(module.apply)(variables, model.normalize_input(samples[i : i + 1, :length]))
        assert frames[i] == count[0] == single.shape[1]
        np.testing.assert_allclose(logits[i, : count[0]], single[0], atol=1e-5)


def test_path_loss_is_the_cross_entropy_of_the_counted_frames():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]))
    loss = ctc.alignment_loss(logits, jnp.array([[0, 1, -1]]))
    np.testing.assert_allclose(loss, -(np.log(0.5) + np.log(0.8)) / 2, rtol=1e-6)
