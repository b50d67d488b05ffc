"""Sampling stages of the encoder, prenet and postnet: a change of the frame rate, then a short Vocos backbone.

Reference: sparktts/modules/blocks/samper.py. With ratio 1, as in the release, a sampling block triples its input.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spark_jax.bicodec.vocos import VocosBackbone
from spark_jax.errors import SparkError
from spark_jax.nn.convolution import DepthwiseConv, DepthwiseConvTranspose
from spark_jax.nn.mask import Mask, OutputMask, downsample_mask, upsample_mask, zero_padding

STAGE_LAYERS = 2  # number of blocks in each stage's backbone


def _leaky_relu(inputs: Array) -> Array:
    return jax.nn.leaky_relu(inputs, 0.2)


class SamplingBlock(nn.Module):
    """Upsamples, then downsamples: adds learned depthwise filters to repetition and averaging.

    Raises:
      SparkError: the filter and the average of an odd ratio give different numbers of frames.
    """

    upsample: int = 1
    downsample: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch time channels"], mask: Mask = None
    ) -> Float[Array, "batch frames channels"]:
        repeated = merged = inputs
        if self.upsample > 1:
            ratio = self.upsample
            filter_ = DepthwiseConvTranspose(
                2 * ratio,
                ratio,
                padding=ratio // 2 + ratio % 2,
                output_padding=ratio % 2,
                dtype=self.dtype,
                name="upsample_filter",
            )
            repeated = jnp.repeat(inputs, ratio, axis=1)
            merged = repeated + filter_(_leaky_relu(zero_padding(inputs, mask)))
        if self.downsample == 1:
            return 2 * merged + repeated
        ratio = self.downsample
        filter_ = DepthwiseConv(
            2 * ratio, stride=ratio, padding=ratio // 2 + ratio % 2, dtype=self.dtype, name="downsample_filter"
        )
        filtered = filter_(_leaky_relu(zero_padding(merged, upsample_mask(mask, self.upsample))))
        averaged = _average(merged, ratio) + _average(repeated, ratio)
        if filtered.shape != averaged.shape:
            raise SparkError(
                f"downsampling {merged.shape[1]} frames by {ratio} gives {filtered.shape[1]} filtered and "
                f"{averaged.shape[1]} averaged frames; expected another number of frames"
            )
        return filtered + averaged


def _average(inputs: Float[Array, "batch time channels"], ratio: int) -> Float[Array, "batch frames channels"]:
    batch, time, channels = inputs.shape
    frames = time // ratio
    return jnp.mean(inputs[:, : frames * ratio].reshape(batch, frames, ratio, channels), axis=2)


class SamplingStage(nn.Module):
    """Applies a sampling block and a two-layer backbone; returns the frames and their mask."""

    dim: int
    intermediate_dim: int
    upsample: int = 1
    downsample: int = 1
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch time channels"], mask: Mask = None
    ) -> tuple[Float[Array, "batch frames channels"], OutputMask]:
        x = SamplingBlock(self.upsample, self.downsample, self.dtype, name="sampling")(inputs, mask)
        mask = downsample_mask(upsample_mask(mask, self.upsample), self.downsample)
        backbone = VocosBackbone(self.dim, self.intermediate_dim, STAGE_LAYERS, self.dtype, self.remat, name="backbone")
        return backbone(x, mask=mask), mask
