"""Semantic encoder: features of wav2vec2 → latents of the quantizer (paper §3.1.1)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax.bicodec.sampling import SamplingStage
from spark_jax.bicodec.vocos import VocosBackbone
from spark_jax.config import VocosConfig
from spark_jax.nn.linear import Linear
from spark_jax.nn.mask import Mask


class Encoder(nn.Module):
    """Backbone → stages that downsample by `sample_ratios` → linear map.

    Reference: encoder_decoder/feat_encoder.py.
    """

    config: VocosConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch time features"], mask: Mask = None
    ) -> Float[Array, "batch frames latent"]:
        """Returns time / product of the ratios frames; frames outside `mask` are meaningless."""
        c = self.config
        sizes = (c.vocos_dim, c.vocos_intermediate_dim)
        backbone = VocosBackbone(*sizes, c.vocos_num_layers, self.dtype, self.remat, name="backbone")
        x = backbone(features, mask=mask)
        for i, ratio in enumerate(c.sample_ratios):
            stage = SamplingStage(*sizes, downsample=ratio, dtype=self.dtype, remat=self.remat, name=f"stage_{i}")
            x, mask = stage(x, mask)
        return Linear(c.out_channels, dtype=self.dtype, name="project")(x)
