"""Factorized vector quantizer of the semantic tokens (paper §3.1.2; reference vq/factorized_vector_quantize.py)."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from spark_jax.config import QuantizerConfig
from spark_jax.nn.convolution import Conv
from spark_jax.nn.mask import Mask
from spark_jax.nn.norm import l2_normalize


@flax.struct.dataclass
class VectorQuantization:
    """Result of the quantizer; losses and statistics are those of the whole batch."""

    quantized: Float[Array, "batch time latent"]  # with straight-through gradients to the encoder
    ids: Int[Array, "batch time"]
    loss: Float[Array, ""]  # weighted codebook and commitment losses
    perplexity: Float[Array, ""]  # of the codes of this batch
    active_num: Float[Array, ""]  # number of codes in use: by the moving average in training, else in this batch


def code_distances(latents: Float[Array, "... dim"], codebook: Float[Array, "codes dim"]) -> Float[Array, "... codes"]:
    """Returns squared distances between L2-normalized latents and codes, in float32 at full precision.

    The square is expanded as in the reference, so that near ties are decided alike.
    """
    latents, codebook = l2_normalize(latents), l2_normalize(codebook)
    products = jnp.matmul(latents, codebook.T, precision=lax.Precision.HIGHEST)
    return jnp.sum(jnp.square(latents), axis=-1, keepdims=True) - 2 * products + jnp.sum(jnp.square(codebook), axis=-1)


def nearest_codes(latents: Float[Array, "... dim"], codebook: Float[Array, "codes dim"]) -> Int[Array, "..."]:
    """Returns the index of the code with the nearest direction, the lowest index on ties."""
    return jnp.argmin(code_distances(latents, codebook), axis=-1).astype(jnp.int32)


class FactorizedVectorQuantizer(nn.Module):
    """Projects to a few dimensions, chooses the code of the nearest direction, and projects its raw row back.

    It computes in float32. The collection "code_statistics" holds `cluster_size`, the moving average of code counts.
    """

    config: QuantizerConfig

    def setup(self) -> None:
        c = self.config
        codebook_init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("codes", None))
        self.codebook = self.param("codebook", codebook_init, (c.codebook_size, c.codebook_dim), jnp.float32)
        self.cluster_size = self.variable("code_statistics", "cluster_size", jnp.zeros, (c.codebook_size,), jnp.float32)
        if c.input_dim != c.codebook_dim:
            self.in_project = Conv(c.codebook_dim, 1, weight_norm=True)
            self.out_project = Conv(c.input_dim, 1, weight_norm=True)

    def _project_in(self, latents: Float[Array, "batch time latent"]) -> Float[Array, "batch time code"]:
        latents = latents.astype(jnp.float32)
        return latents if self.config.input_dim == self.config.codebook_dim else self.in_project(latents)

    def _project_out(self, codes: Float[Array, "batch time code"]) -> Float[Array, "batch time latent"]:
        return codes if self.config.input_dim == self.config.codebook_dim else self.out_project(codes)

    def tokenize(self, latents: Float[Array, "batch time latent"]) -> Int[Array, "batch time"]:
        """Returns the ids of latents."""
        return nearest_codes(self._project_in(latents), self.codebook)

    def detokenize(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time latent"]:
        """Returns the quantized latents of ids."""
        return self._project_out(jnp.take(self.codebook, ids, axis=0, mode="clip"))

    def __call__(
        self, latents: Float[Array, "batch time latent"], train: bool, mask: Mask = None
    ) -> VectorQuantization:
        """Quantizes latents; losses and statistics count only frames inside the mask."""
        c = self.config
        projected = self._project_in(latents)
        ids = nearest_codes(lax.stop_gradient(projected), lax.stop_gradient(self.codebook))
        codes = jnp.take(self.codebook, ids, axis=0, mode="clip")

        # For items of equal length, means over the batch equal the reference's means of per-item means.
        where = None if mask is None else mask[..., None]
        codebook_loss = jnp.mean(jnp.square(codes - lax.stop_gradient(projected)), where=where)
        commitment = jnp.mean(jnp.square(projected - lax.stop_gradient(codes)), where=where)
        loss = c.codebook_loss_weight * codebook_loss + c.commitment * commitment

        frames = jnp.ones(ids.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
        counts = jnp.zeros(c.codebook_size, jnp.float32).at[ids.reshape(-1)].add(frames.reshape(-1))
        usage = counts / jnp.sum(frames)
        perplexity = jnp.exp(-jnp.sum(usage * jnp.log(usage + 1e-10)))
        in_use = counts > 0
        if train:
            cluster_size = c.decay * self.cluster_size.value + (1 - c.decay) * counts
            if not self.is_initializing():
                self.cluster_size.value = cluster_size
            in_use = cluster_size > c.threshold_ema_dead_code

        straight_through = projected + lax.stop_gradient(codes - projected)
        return VectorQuantization(
            quantized=self._project_out(straight_through),
            ids=ids,
            loss=loss,
            perplexity=perplexity,
            active_num=jnp.sum(in_use).astype(jnp.float32),
        )
