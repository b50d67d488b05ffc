"""Root-mean-square normalization."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x²) + epsilon) · scale over the last axis in float32 and returns it in x's type."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        full = x.astype(jnp.float32)
        normed = full * jax.lax.rsqrt(jnp.mean(jnp.square(full), axis=-1, keepdims=True) + self.epsilon)
        return (normed * scale).astype(x.dtype)
