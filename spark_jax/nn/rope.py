"""Rotary position embedding, the half-split form of Llama and Qwen (RoFormer, arXiv 2104.09864)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary_angles(
    positions: Int[Array, "batch time"], head_dim: int, theta: float
) -> tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]:
    """Cosine and sine of position · theta^(-2i / head_dim), float32: large positions need the mantissa."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(
    x: Float[Array, "batch time heads dim"],
    cosine: Float[Array, "batch time half"],
    sine: Float[Array, "batch time half"],
) -> Float[Array, "batch time heads dim"]:
    """Turns each pair (x[i], x[i + dim/2]) by its angle, in float32; returned in x's type."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
