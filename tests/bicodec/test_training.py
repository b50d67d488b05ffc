"""BiCodec in training mode against the reference: losses, gradients of every parameter, statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.quick_compile import quick_jit

MUTABLE = ["batch_stats", "code_statistics"]


def assert_close(actual, expected, tolerance, name=""):
    assert actual.shape == expected.shape, name
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected)), name


def leaf(tree, path):
    for name in path.split("."):
        tree = tree[name]
    return np.asarray(tree)


def differentiate(codec, variables, golden, loss):
    """Gradients of loss(output) for parameters, features, reference and encoder output; output; new statistics."""

    def run(params, features, reference, offset):
        def shift_encoder_output(next_method, args, kwargs, context):
            output = next_method(*args, **kwargs)
            is_encoder = context.module.name == "encoder" and context.method_name == "__call__"
            return output + offset if is_encoder else output

        with nn.intercept_methods(shift_encoder_output):
            output, statistics = codec.apply(
                variables | {"params": params}, features, reference, train=True, mutable=MUTABLE
            )
        return loss(output), (output, statistics)

    offset = jnp.zeros_like(np.swapaxes(golden["eval/encoder_z"], 1, 2))
    run = jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True)
    (value, (output, statistics)), gradients = quick_jit(run)(
        variables["params"], golden["in/feat"], golden["in/ref_wav"], offset
    )
    return value, output, statistics, gradients


@pytest.fixture(scope="module")
def trained(codec, variables, golden):
    def loss(output):
        return jnp.mean(output.recons**2) + output.vq_loss + jnp.mean(output.pred_feat**2)

    return differentiate(codec, variables, golden, loss)


@pytest.mark.extended
def test_outputs(trained, golden):
    value, output, _, _ = trained
    assert_close(value, golden["train/loss"], 1e-5)
    assert_close(output.vq_loss, golden["train/vq_loss"], 1e-5)
    assert_close(output.perplexity, golden["train/perplexity"], 1e-5)
    assert output.active_num == golden["train/active_num"]
    assert np.max(np.abs(output.recons - golden["train/recons"][:, 0])) < 1e-4
    assert_close(output.pred_feat, np.swapaxes(golden["train/pred_feat"], 1, 2), 1e-5)
    assert_close(output.x_vector, golden["train/x_vector"], 1e-4)
    assert_close(output.d_vector, golden["train/d_vector"], 1e-5)


@pytest.mark.extended
def test_gradients_of_inputs(trained, golden):
    _, _, _, (_, features, reference, encoded) = trained
    assert_close(features, golden["train/grad_feat"], 1e-4)
    assert_close(reference, golden["train/grad_ref_wav"], 1e-4)
    assert_close(encoded, np.swapaxes(golden["train/grad_z"], 1, 2), 1e-4)


def test_gradient_statistics_of_every_parameter(trained, golden, ours):
    gradients = trained[3][0]
    unseen = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(gradients)
    }
    wrong = []
    for key, (total, absolute, norm) in _statistics(golden):
        path, _ = ours(key, np.zeros(1))
        gradient = leaf(gradients, path).astype(np.float64)
        unseen.remove(path)
        actual = np.array([gradient.sum(), np.abs(gradient).sum(), np.sqrt(np.square(gradient).sum())])
        scale = np.array([absolute, absolute, norm])
        if not np.all(np.abs(actual - (total, absolute, norm)) <= 1e-4 * scale + 1e-9):
            wrong.append((key, actual, (total, absolute, norm)))
    assert not wrong
    # The x-vector's own layers get no gradient from this loss.
    assert unseen == {
        f"speaker_encoder.ecapa.{name}"
        for name in (
            "pool.linear_1.kernel",
            "pool.linear_1.bias",
            "pool.linear_2.kernel",
            "pool.linear_2.bias",
            "norm.scale",
            "norm.bias",
            "linear.kernel",
            "linear.bias",
        )
    }


def _statistics(golden):
    prefix = "train/gradstat/"
    return [(name.removeprefix(prefix), value) for name, value in golden.items() if name.startswith(prefix)]


def assert_full_gradients(gradients, golden, prefix, ours):
    names = [name for name in golden if name.startswith(prefix)]
    assert names
    for name in names:
        path, expected = ours(name.removeprefix(prefix), golden[name])
        assert_close(leaf(gradients, path), expected, 1e-4, name)


def test_full_gradients(trained, golden, ours):
    assert_full_gradients(trained[3][0], golden, "train/grad/", ours)


def test_statistics_after_one_step(trained, golden, ours):
    statistics = trained[2]
    for name in (name for name in golden if name.startswith("train/after/")):
        path, expected = ours(name.removeprefix("train/after/"), golden[name])
        collection = "code_statistics" if "cluster_size" in path else "batch_stats"
        assert_close(leaf(statistics[collection], path), expected, 1e-5, name)


@pytest.mark.extended
def test_speaker_vectors_alone(codec, variables, golden, ours):
    def loss(output):
        return jnp.mean(output.x_vector**2) + jnp.mean(output.d_vector**2)

    value, _, _, (params, _, reference, _) = differentiate(codec, variables, golden, loss)
    assert_close(value, golden["train2/loss"], 1e-5)
    assert_close(reference, golden["train2/grad_ref_wav"], 1e-4)
    assert_full_gradients(params, golden, "train2/grad/", ours)
