"""Discriminators and their losses against goldens of an independent PyTorch writing (tests/assets/gan)."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.quick_compile import quick_jit
from safetensors.flax import load_file

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


def halves(maps):
    """The maps of the fake wave, and those of the real one."""
    return [jax.tree.map(lambda x, half=half: jnp.split(x, 2)[half], maps) for half in (0, 1)]


def apply(params, waves):
    return MODEL.apply({"params": params}, waves)


@pytest.fixture(scope="module")
def waves(golden):
    """The fake wave and the real one: one batch, since the discriminators' convolutions take long to compile."""
    return jnp.concatenate([golden[f"in/{name}"][:, 0] for name in ("fake", "real")])


@pytest.fixture(scope="module")
def results(params, waves):
    """The fake wave's maps, and the losses."""

    @quick_jit
    def evaluate(params, waves):
        fake, real = halves(apply(params, waves))
        return {
            "maps": fake,
            "adversarial": losses.adversarial_loss(fake),
            "feature_matching": losses.feature_matching_loss(fake, real),
            "discriminator": losses.discriminator_loss(fake, real),
        }

    return jax.device_get(evaluate(params, waves))


@pytest.fixture(scope="module")
def gradients(params, waves):
    """Gradients of the generator's losses by the fake wave, and of the discriminators' loss by their parameters."""

    @quick_jit
    def evaluate(params, waves):
        maps, pull = jax.vjp(apply, params, waves)

        def generator_loss(maps):
            return losses.adversarial_loss(halves(maps)[0]) + losses.feature_matching_loss(*halves(maps))

        wave_gradient = pull(jax.grad(generator_loss)(maps))[1]
        grads = pull(jax.grad(lambda maps: losses.discriminator_loss(*halves(maps)))(maps))[0]
        return wave_gradient[: len(waves) // 2], grads

    return evaluate(params, waves)


def test_feature_maps(golden, results):
    maps = results["maps"]
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


@pytest.mark.parametrize("name", ["adversarial", "feature_matching", "discriminator"])
def test_losses(golden, results, name):
    np.testing.assert_allclose(results[name], golden[f"loss/{name}"], rtol=1e-5)


@pytest.mark.extended
def test_gradient_of_the_generator(golden, gradients):
    gradient, _ = gradients
    assert_close(gradient, golden["grad/fake_of_adv_plus_fm"].reshape(gradient.shape), 1e-4)


@pytest.mark.extended
def test_gradients_of_the_discriminators(golden, gradients):
    names = set()
    for path, grad in jax.tree_util.tree_flatten_with_path(gradients[1])[0]:
        name = torch_name(path)
        names.add(f"gradstat/{name}")
        total, absolute, norm = golden[f"gradstat/{name}"]
        grad = np.asarray(grad, np.float64)
        np.testing.assert_allclose(np.abs(grad).sum(), absolute, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(np.sqrt((grad**2).sum()), norm, rtol=1e-3, err_msg=name)
        # A sum of terms of both signs: the error is relative to the sum of their sizes.
        np.testing.assert_allclose(grad.sum(), total, atol=1e-3 * absolute, err_msg=name)
    assert names == {name for name in golden if name.startswith("gradstat/")}


@pytest.mark.extended
def test_one_kind_alone():
    config = DiscriminatorConfig(
        periods=(), spectral_channels=2, fft_sizes=(128,), hop_lengths=(32,), window_lengths=(100,)
    )
    wave = jax.random.normal(jax.random.key(0), (1, 640))
    maps, variables = quick_jit(Discriminators(config).init_with_output)(jax.random.key(1), wave)
    assert list(variables["params"]) == ["spectral_128"]
    assert len(maps) == 1 and maps[0][-1].shape[-1] == 1
