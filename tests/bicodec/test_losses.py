"""Multi-resolution mel loss against the goldens in tests/assets/gan."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file

from spark_jax.bicodec import losses

GOLDEN = load_file(Path(__file__).parent.parent / "assets" / "gan" / "golden.safetensors")


@pytest.mark.parametrize(("window", "bands"), list(zip(losses.MEL_WINDOWS, losses.MEL_BANDS, strict=True)))
def test_each_resolution(window, bands):
    loss = jax.jit(losses.mel_loss, static_argnums=(2, 3, 4))(
        GOLDEN["mel/in_x"], GOLDEN["mel/in_y"], window, bands, 16_000
    )
    np.testing.assert_allclose(loss, GOLDEN[f"mel/loss_{window}"], rtol=1e-5)
    empty = int(np.sum(np.all(losses.filterbank(window, bands, 16_000) == 0, axis=0)))
    assert empty == GOLDEN[f"mel/fb_zero_columns_{window}"]


def test_total_and_gradient():
    x, y = jnp.asarray(GOLDEN["mel/in_x"]), jnp.asarray(GOLDEN["mel/in_y"])
    loss, gradient = jax.jit(jax.value_and_grad(losses.multi_resolution_mel_loss), static_argnums=2)(x, y, 16_000)
    np.testing.assert_allclose(loss, GOLDEN["mel/loss"], rtol=1e-5)
    # An element near the |·| kink may take the other sign: compare in norm, and all but a few in value.
    expected = GOLDEN["mel/grad_x"]
    assert np.linalg.norm(gradient - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.extended
def test_gradient_is_finite_in_silence():
    silence = jnp.zeros((1, 4096))
    target = jax.random.normal(jax.random.key(0), (1, 4096))
    assert np.all(
        np.isfinite(jax.jit(jax.grad(losses.multi_resolution_mel_loss), static_argnums=2)(silence, target, 16_000))
    )


def test_repetition_is_that_of_unvoiced_frames():
    hop, rng = 320, np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (2, 12 * hop)).astype(np.float32)
    repeated = np.tile(noise[:, :hop], (1, 12))
    unvoiced = np.ones((2, 12), bool)
    loss = jax.jit(losses.repetition_loss)
    assert loss(repeated, unvoiced) > 0.99
    assert loss((-1.0) ** np.arange(12).repeat(hop) * repeated, unvoiced) > 0.99
    assert loss(noise, unvoiced) < 0.01  # 1 / 320 in the mean
    half = np.concatenate([repeated[:, : 6 * hop], noise[:, 6 * hop :]], axis=1)
    assert loss(half, np.arange(12) >= np.full((2, 1), 6)) < 0.02
    assert loss(half, np.arange(12) < np.full((2, 1), 6)) > 0.99
    assert loss(repeated, ~unvoiced) == 0
    assert loss(np.zeros_like(noise), unvoiced) == 0
    assert np.all(np.isfinite(jax.grad(losses.repetition_loss)(jnp.zeros(noise.shape), jnp.asarray(unvoiced))))
