"""Snake against the reference, with negative, small and zero alpha."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file

from spark_jax.nn.snake import snake

GOLDEN = load_file(Path(__file__).parents[1] / "assets" / "bicodec" / "modules_golden.safetensors")


def test_golden():
    inputs = np.swapaxes(GOLDEN["snake/in"], 1, 2)
    output = snake(inputs, GOLDEN["snake/alpha"].reshape(-1))
    np.testing.assert_allclose(np.swapaxes(output, 1, 2), GOLDEN["snake/out"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.swapaxes(snake(inputs, jnp.zeros(5)), 1, 2), GOLDEN["snake/alpha0_out"])


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_value_and_gradient_match_float64(spread):
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 500, 4))) * spread
    alpha = np.array([1.0, -0.3, 1e-3, 7.0], np.float32)
    weight = np.asarray(jax.random.normal(jax.random.key(1), x.shape))

    output, pullback = jax.vjp(snake, jnp.asarray(x), jnp.asarray(alpha))
    grad_x, grad_alpha = pullback(jnp.asarray(weight))
    x, alpha, weight = (value.astype(np.float64) for value in (x, alpha, weight))
    sin, cos, divisor = np.sin(alpha * x), np.cos(alpha * x), alpha + 1e-9
    np.testing.assert_allclose(output, x + sin**2 / divisor, rtol=1e-5, atol=1e-5 * spread)
    np.testing.assert_allclose(grad_x, weight * (1 + 2 * sin * cos * alpha / divisor), atol=1e-4 * spread)
    expected = np.sum(weight * (2 * sin * cos * x / divisor - (sin / divisor) ** 2), axis=(0, 1))
    np.testing.assert_allclose(grad_alpha, expected, rtol=1e-3, atol=1e-3 * spread)
