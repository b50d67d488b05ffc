"""Vocos (ConvNeXt) blocks: the backbone of the semantic encoder, the prenet and the postnet.

Reference: sparktts/modules/blocks/vocos.py. Kernels of convolutions and linear maps start as N(0, 0.02), and the layer
scale starts as 1 / number of blocks. AdaLN's scale starts at one (its bias); the reference initializes it near zero.
Trained weights have the same form.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax.nn.convolution import Conv, DepthwiseConv
from spark_jax.nn.gelu import gelu
from spark_jax.nn.linear import Linear, no_single_row
from spark_jax.nn.mask import Mask, zero_padding
from spark_jax.nn.norm import LayerNorm, standardize

BACKBONE_INIT = nn.initializers.normal(0.02)
EPS = 1e-6


class AdaLayerNorm(nn.Module):
    """LN(x)·scale(condition) + shift(condition), without "1 +" and without affine parameters of its own."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch time channels"], condition: Float[Array, "batch condition"]
    ) -> Float[Array, "batch time channels"]:
        axes, rows = ("mlp", "embed"), condition.shape[0]
        ones = nn.initializers.ones
        condition = no_single_row(condition)
        scale = Linear(self.features, axes, kernel_init=BACKBONE_INIT, bias_init=ones, name="scale")(condition)[:rows]
        shift = Linear(self.features, axes, kernel_init=BACKBONE_INIT, name="shift")(condition)[:rows]
        return (standardize(inputs, EPS) * scale[:, None] + shift[:, None]).astype(self.dtype)


def _normalize(
    name: str,
    inputs: Float[Array, "batch time channels"],
    condition: Float[Array, "batch condition"] | None,
    dtype: DTypeLike,
) -> Float[Array, "batch time channels"]:
    if condition is None:
        return LayerNorm(EPS, dtype=dtype, name=name)(inputs)
    return AdaLayerNorm(inputs.shape[-1], dtype=dtype, name=name)(inputs, condition)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution of size 7 → norm → expand → GELU → contract → layer scale, with a residual."""

    intermediate_dim: int
    layer_scale: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch time channels"],
        condition: Float[Array, "batch condition"] | None = None,
        mask: Mask = None,
    ) -> Float[Array, "batch time channels"]:
        dim = inputs.shape[-1]
        settings = {"kernel_init": BACKBONE_INIT, "dtype": self.dtype}
        x = DepthwiseConv(7, padding=3, name="depthwise", **settings)(zero_padding(inputs, mask))
        x = _normalize("norm", x, condition, self.dtype)
        x = Linear(self.intermediate_dim, ("embed", "mlp"), name="expand", **settings)(x)
        x = gelu(x)
        x = Linear(dim, ("mlp", "embed"), name="contract", **settings)(x)
        scale = nn.with_logical_partitioning(nn.initializers.constant(self.layer_scale), ("embed",))
        gamma = self.param("gamma", scale, (dim,), jnp.float32)
        return inputs + gamma.astype(self.dtype) * x


class VocosBackbone(nn.Module):
    """Embedding convolution → norm → ConvNeXt blocks → layer norm without condition."""

    dim: int
    intermediate_dim: int
    num_layers: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False  # whether blocks save only their inputs for the gradient

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch time in"],
        condition: Float[Array, "batch condition"] | None = None,
        mask: Mask = None,
    ) -> Float[Array, "batch time channels"]:
        embed = Conv(self.dim, 7, padding=3, kernel_init=BACKBONE_INIT, dtype=self.dtype, name="embed")
        x = embed(zero_padding(inputs, mask))
        x = _normalize("norm", x, condition, self.dtype)
        block_class = nn.remat(ConvNeXtBlock) if self.remat else ConvNeXtBlock
        for i in range(self.num_layers):
            block = block_class(self.intermediate_dim, 1 / self.num_layers, self.dtype, name=f"block_{i}")
            x = block(x, condition, mask)
        return LayerNorm(EPS, dtype=self.dtype, name="final_norm")(x)
