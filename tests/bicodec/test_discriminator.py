"""Discriminators and their losses against goldens of an independent PyTorch writing (tests/assets/gan)."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from spark_jax.bicodec import losses
from spark_jax.bicodec.discriminator import Discriminators
from spark_jax.config import DiscriminatorConfig

ASSETS = Path(__file__).parent.parent / "assets" / "gan"
CONFIG = DiscriminatorConfig(period_channels=(4, 4, 16, 32, 32), spectral_channels=4)
MODEL = Discriminators(CONFIG)


def torch_name(path):
    """Our parameter path → the fixture's name, and whether the kernel is one-dimensional."""
    module, layer, leaf = (key.key for key in path)
    kind, size = module.split("_")
    if kind == "period":
        index = CONFIG.periods.index(int(size))
        layer = "conv_post" if layer == "post" else f"convs.{layer.removeprefix('conv_')}"
    else:
        index = len(CONFIG.periods) + CONFIG.fft_sizes.index(int(size))
        if layer == "post":
            layer = "conv_post"
        else:
            _, band, _, number = layer.split("_")
            layer = f"band_convs.{band}.{number}"
    leaf = {"kernel_v": "weight_v", "kernel_g": "weight_g", "bias": "bias"}[leaf]
    return f"discriminators.{index}.{layer}.{leaf}"


@pytest.fixture(scope="module")
def golden():
    return load_file(ASSETS / "golden.safetensors")


@pytest.fixture(scope="module")
def params():
    torch = load_file(ASSETS / "model.safetensors")
    abstract = nn.meta.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 6400))))["params"]

    def convert(path, leaf):
        value = torch.pop(torch_name(path))
        if path[-1].key == "kernel_v":
            value = value.transpose(2, 3, 1, 0)
            value = value[:, 0] if len(leaf.shape) == 3 else value
        value = value.reshape(-1) if path[-1].key == "kernel_g" else value
        assert value.shape == leaf.shape
        return jnp.asarray(value)

    tree = jax.tree_util.tree_map_with_path(convert, abstract)
    assert not torch, f"left over: {list(torch)[:3]}"
    return tree


def torch_layout(maps, index):
    """[batch·period, frames, channels] or [batch, frames, bins, channels] → the golden's layout."""
    if maps.ndim == 4:
        return np.asarray(maps).transpose(0, 3, 1, 2)
    period = CONFIG.periods[index]
    maps = np.asarray(maps).reshape(-1, period, *maps.shape[1:])
    return maps.transpose(0, 3, 2, 1)


def assert_close(actual, expected, tolerance=2e-5):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(scale, 1e-6))


def test_feature_maps(golden, params):
    maps = jax.jit(MODEL.apply)({"params": params}, jnp.asarray(golden["in/fake"][:, 0]))
    assert [len(each) for each in maps] == [6] * 5 + [26] * 3
    seen = 0
    for i, each in enumerate(maps):
        for j, array in enumerate(each):
            stat = [np.mean(array), np.mean(np.abs(array))]
            np.testing.assert_allclose(stat, golden[f"fake_stat/{i}/{j}"], rtol=1e-4, atol=1e-6)
            if f"fake/{i}/{j}" in golden:
                assert_close(torch_layout(array, i), golden[f"fake/{i}/{j}"])
                seen += 1
    assert seen == sum(name.startswith("fake/") for name in golden)


def test_generator_losses_and_gradient(golden, params):
    fake, real = (jnp.asarray(golden[f"in/{name}"][:, 0]) for name in ("fake", "real"))

    @jax.jit
    def evaluate(fake):
        def loss(fake):
            ours, theirs = (MODEL.apply({"params": params}, wave) for wave in (fake, real))
            terms = losses.adversarial_loss(ours), losses.feature_matching_loss(ours, theirs)
            return sum(terms), terms

        return jax.grad(loss, has_aux=True)(fake)

    gradient, (adversarial, matching) = evaluate(fake)
    np.testing.assert_allclose(adversarial, golden["loss/adversarial"], rtol=1e-5)
    np.testing.assert_allclose(matching, golden["loss/feature_matching"], rtol=1e-5)
    assert_close(gradient, golden["grad/fake_of_adv_plus_fm"].reshape(gradient.shape), 1e-4)


def test_discriminator_loss_and_gradients(golden, params):
    fake, real = (jnp.asarray(golden[f"in/{name}"][:, 0]) for name in ("fake", "real"))

    @jax.jit
    def evaluate(params):
        def loss(params):
            ours, theirs = (MODEL.apply({"params": params}, wave) for wave in (fake, real))
            return losses.discriminator_loss(ours, theirs)

        return jax.value_and_grad(loss)(params)

    loss, grads = evaluate(params)
    np.testing.assert_allclose(loss, golden["loss/discriminator"], rtol=1e-5)
    names = set()
    for path, grad in jax.tree_util.tree_flatten_with_path(grads)[0]:
        name = torch_name(path)
        names.add(f"gradstat/{name}")
        total, absolute, norm = golden[f"gradstat/{name}"]
        grad = np.asarray(grad, np.float64)
        np.testing.assert_allclose(np.abs(grad).sum(), absolute, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(np.sqrt((grad**2).sum()), norm, rtol=1e-3, err_msg=name)
        # A sum of terms of both signs: the error is relative to the sum of their sizes.
        np.testing.assert_allclose(grad.sum(), total, atol=1e-3 * absolute, err_msg=name)
    assert names == {name for name in golden if name.startswith("gradstat/")}


def test_one_kind_alone():
    config = DiscriminatorConfig(periods=(), spectral_channels=2, fft_sizes=(128,), hop_lengths=(32,),
                                 window_lengths=(100,))  # fmt: skip
    wave = jax.random.normal(jax.random.key(0), (1, 640))
    maps, variables = Discriminators(config).init_with_output(jax.random.key(1), wave)
    assert list(variables["params"]) == ["spectral_128"]
    assert len(maps) == 1 and maps[0][-1].shape[-1] == 1
