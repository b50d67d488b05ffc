"""Rotary position embedding in the half-split form of Llama and Qwen (RoFormer, arXiv 2104.09864)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spark_jax import sharding


def rotary_angles(
    positions: Int[Array, "batch time"], head_dim: int, theta: float
) -> tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]:
    """Returns cosine and sine of position · theta^(-2i / head_dim), in float32 because positions are large."""
    turn = partial(_turn, head_dim=head_dim, theta=theta)
    if positions.shape[1] == 1:
        return turn(positions)
    # XLA's CPU backend would compute the angles again in every layer, which takes a twentieth of a training step; it
    # keeps the results of a loop.
    rows, parts = ("batch", None), ("batch", None, None)
    by_row = sharding.per_device(partial(jax.lax.map, turn), (rows,), (parts, parts))
    return jax.lax.platform_dependent(positions, cpu=by_row, default=turn)


def _turn(positions: Int[Array, "*shape"], head_dim: int, theta: float) -> tuple[Array, Array]:
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(
    x: Float[Array, "batch time heads dim"],
    cosine: Float[Array, "batch time half"],
    sine: Float[Array, "batch time half"],
) -> Float[Array, "batch time heads dim"]:
    """Rotates each pair (x[i], x[i + dim/2]) by its angle in float32 and returns the result in x's type."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
