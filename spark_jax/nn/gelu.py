"""Exact (erf) GELU, whose derivative is computed together with its value."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x · Φ(x), as the reference does (never the tanh approximation).

    The backward pass multiplies by a saved derivative. With plain autodiff, XLA's CPU backend fuses erf and exp into
    the row reductions of a preceding layer norm, where they are not vectorized: layer norm and GELU of [8, 10239, 64]
    with gradient took 133 ms of processor time, and 22 ms with this function and `norm.standardize`.
    """
    return _forward(x)[0]


def _forward(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    cdf = 0.5 * (1.0 + lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2.0 * math.pi)
    return x * cdf, cdf + x * density


gelu.defvjp(_forward, lambda derivative, gradient: (gradient * derivative,))
