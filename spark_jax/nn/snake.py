"""Snake: the periodic activation of the wave generator (Ziyin et al. 2020; reference modules/blocks/layers.py)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# π as a sum of three float32 numbers; the first is short enough that its multiples below 2¹⁶ are exact.
_PI_HIGH = np.float32(3.140625)
_PI_MIDDLE = np.float32(math.pi - 3.140625)
_PI_LOW = np.float32(math.pi - 3.140625 - float(_PI_MIDDLE))


def _sin_cos(angle: Array) -> tuple[Array, Array]:
    """Returns sine and cosine up to a common sign, which cancels in their products.

    Angles are reduced to ±π/2, where the Taylor series below are exact to float32. On CPUs, XLA's own sine is a scalar
    call for each element, fifty times slower, which took most of the wave generator's time.
    """
    turns = jnp.round(angle * np.float32(1 / math.pi))
    r = ((angle - turns * _PI_HIGH) - turns * _PI_MIDDLE) - turns * _PI_LOW
    square = r * r
    sin = _series(square, [(-1) ** i / math.factorial(2 * i + 1) for i in range(6)])
    cos = _series(square, [(-1) ** i / math.factorial(2 * i) for i in range(7)])
    return r * sin, cos


def _series(x: Array, coefficients: list[float]) -> Array:
    """Returns Σ coefficients[i]·xⁱ by Horner's rule."""
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = coefficient + x * total
    return total


@jax.custom_vjp
def snake(
    inputs: Float[Array, "batch time channels"], alpha: Float[Array, "channels"]
) -> Float[Array, "batch time channels"]:
    """Computes x + sin²(αx) / (α + 1e-9) with one α per channel, in float32; returns it in the inputs' type."""
    x, alpha = inputs.astype(jnp.float32), alpha.astype(jnp.float32)
    sin, _ = _sin_cos(alpha * x)
    return (x + sin * sin * (1 / (alpha + 1e-9))).astype(inputs.dtype)


def _snake_forward(inputs: Array, alpha: Array) -> tuple[Array, tuple[Array, Array]]:
    return snake(inputs, alpha), (inputs, alpha)


def _snake_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    # Only the inputs are saved: recomputing the sine is cheaper than loading it.
    inputs, alpha = residuals
    x, g = inputs.astype(jnp.float32), cotangent.astype(jnp.float32)
    inverse = 1 / (alpha.astype(jnp.float32) + 1e-9)
    sin, cos = _sin_cos(alpha * x)
    slope = 2 * sin * cos
    grad_inputs = g * (1 + slope * (alpha * inverse))
    grad_alpha = jnp.sum(g * (slope * x - sin * sin * inverse), axis=(0, 1)) * inverse
    return grad_inputs.astype(inputs.dtype), grad_alpha.astype(alpha.dtype)


snake.defvjp(_snake_forward, _snake_backward)


class Snake(nn.Module):
    """`snake` with a trained α for each channel, which starts at 1."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time channels"]) -> Float[Array, "batch time channels"]:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("conv_out",))
        alpha = self.param("alpha", init, (inputs.shape[-1],), jnp.float32)
        return snake(inputs.astype(self.dtype), alpha)
