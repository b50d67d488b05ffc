"""Feature decoder: the prenet, conditioned on the speaker, and the postnet of the training (paper §3.1.1)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax.bicodec.sampling import SamplingStage
from spark_jax.bicodec.vocos import VocosBackbone
from spark_jax.config import VocosConfig
from spark_jax.nn.linear import Linear
from spark_jax.nn.mask import Mask


class Decoder(nn.Module):
    """Linear map → stages that upsample by `sample_ratios` → backbone → linear map.

    The backbone is conditioned (AdaLN) if the configuration has a `condition_dim`. Reference:
    encoder_decoder/feat_decoder.py.
    """

    config: VocosConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "batch time latent"],
        condition: Float[Array, "batch condition"] | None = None,
        mask: Mask = None,
    ) -> Float[Array, "batch frames out"]:
        """Returns time · product of the ratios frames; frames outside `mask` are meaningless."""
        c = self.config
        sizes = (c.vocos_dim, c.vocos_intermediate_dim)
        x = Linear(c.vocos_dim, ("mlp", "embed"), dtype=self.dtype, name="linear_in")(latents)
        for i, ratio in enumerate(c.sample_ratios):
            stage = SamplingStage(*sizes, upsample=ratio, dtype=self.dtype, remat=self.remat, name=f"stage_{i}")
            x, mask = stage(x, mask)
        backbone = VocosBackbone(*sizes, c.vocos_num_layers, self.dtype, self.remat, name="backbone")
        x = backbone(x, condition if c.condition_dim else None, mask)
        x = Linear(c.out_channels, dtype=self.dtype, name="linear_out")(x)
        return jnp.tanh(x) if c.use_tanh_at_final else x
