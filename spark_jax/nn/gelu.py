"""Exact (erf) GELU, with the derivative computed beside the value."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · Φ(x), the reference's GELU (never the tanh approximation).

    The backward pass multiplies by a saved derivative. Left to autodiff, XLA's CPU backend fuses erf and exp
    into the row reductions of a layer norm before it, where they run unvectorized: [8, 10239, 64], layer norm
    and GELU with gradient, took 133 ms of processor time against 22 with this and `norm.standardize`.
    """
    return _forward(x)[0]


def _forward(x):
    cdf = 0.5 * (1.0 + lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2.0 * math.pi)
    return x * cdf, cdf + x * density


gelu.defvjp(_forward, lambda derivative, gradient: (gradient * derivative,))
