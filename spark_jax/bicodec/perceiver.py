"""Perceiver resampler: any number of frames → a fixed number of latents (reference speaker/perceiver_encoder.py)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax.config import SpeakerEncoderConfig
from spark_jax.nn.gelu import gelu
from spark_jax.nn.linear import Linear
from spark_jax.nn.norm import l2_normalize


class CrossAttention(nn.Module):
    """Attention of latents to themselves and the context, without biases and without normalization."""

    heads: int
    head_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, latents: Float[Array, "batch latents dim"], context: Float[Array, "batch frames dim"]
    ) -> Float[Array, "batch latents dim"]:
        inner = self.heads * self.head_dim
        settings = {"use_bias": False, "dtype": self.dtype}
        query = Linear(inner, ("embed", "heads"), name="to_q", **settings)(latents)
        context = jnp.concatenate([latents.astype(self.dtype), context.astype(self.dtype)], axis=1)
        key, value = jnp.split(Linear(2 * inner, ("embed", "heads"), name="to_kv", **settings)(context), 2, axis=-1)
        query, key, value = (x.reshape(*x.shape[:2], self.heads, self.head_dim) for x in (query, key, value))
        scores = jnp.einsum("bihd,bjhd->bhij", query, key).astype(jnp.float32) * self.head_dim**-0.5
        mixed = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores, axis=-1).astype(self.dtype), value)
        return Linear(latents.shape[-1], ("heads", "embed"), name="to_out", **settings)(
            mixed.reshape(*latents.shape[:2], inner)
        )


class FeedForward(nn.Module):
    """GEGLU feed-forward: the second half of the expansion is the gate."""

    mult: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch latents dim"]) -> Float[Array, "batch latents dim"]:
        dim = inputs.shape[-1]
        inner = int(dim * self.mult * 2 / 3)  # 341 in the release: no mesh divides it
        x, gate = jnp.split(Linear(2 * inner, ("embed", None), dtype=self.dtype, name="expand")(inputs), 2, axis=-1)
        x = gelu(gate) * x
        return Linear(dim, (None, "embed"), dtype=self.dtype, name="contract")(x)


class PerceiverResampler(nn.Module):
    """Residual attention and feed-forward layers over trained latents, followed by x / ‖x‖ · √dim · gamma."""

    config: SpeakerEncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, context: Float[Array, "batch frames channels"]
    ) -> Float[Array, "batch {self.config.token_num} {self.config.latent_dim}"]:
        c = self.config
        if context.shape[-1] != c.latent_dim:
            context = Linear(c.latent_dim, ("mlp", "embed"), dtype=self.dtype, name="proj_context")(context)
        init = nn.with_logical_partitioning(nn.initializers.normal(c.latent_std), (None, "embed"))
        x = self.param("latents", init, (c.token_num, c.latent_dim), jnp.float32)
        x = jnp.broadcast_to(x, (context.shape[0], *x.shape)).astype(self.dtype)
        for i in range(c.perceiver_depth):
            attention = CrossAttention(c.perceiver_heads, c.perceiver_head_dim, self.dtype, name=f"attention_{i}")
            x = attention(x, context) + x
            x = FeedForward(c.perceiver_ff_mult, self.dtype, name=f"feed_forward_{i}")(x) + x
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        gamma = self.param("gamma", ones, (c.latent_dim,), jnp.float32)
        return l2_normalize(x) * c.latent_dim**0.5 * gamma
