"""Snake: the periodic activation of the wave generator (Ziyin et al. 2020; reference modules/blocks/layers.py)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


def snake(
    inputs: Float[Array, "batch time channels"], alpha: Float[Array, "channels"]
) -> Float[Array, "batch time channels"]:
    """x + sin²(αx) / (α + 1e-9), with one α per channel."""
    return inputs + jnp.square(jnp.sin(alpha * inputs)) / (alpha + 1e-9)


class Snake(nn.Module):
    """`snake` with a trained α per channel, starting at 1."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch time channels"]) -> Float[Array, "batch time channels"]:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("conv_out",))
        alpha = self.param("alpha", init, (inputs.shape[-1],), jnp.float32)
        return snake(inputs.astype(self.dtype), alpha.astype(self.dtype))
