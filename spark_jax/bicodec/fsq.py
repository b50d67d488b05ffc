"""Residual finite scalar quantizer of the global tokens (Mentzer et al. 2023; reference modules/fsq)."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from spark_jax.nn.linear import Linear


class FiniteScalarQuantizer:
    """Rounds each dimension to one of its levels; a code's index is the mixed-radix number of its levels.

    It has no parameters.
    """

    def __init__(self, levels: tuple[int, ...]):
        self.levels = np.asarray(levels, np.int32)
        self.half_width = self.levels // 2
        self.basis = np.cumprod((1, *levels[:-1]), dtype=np.int32)  # the first dimension is least significant
        self.codebook_size = math.prod(levels)

    def bound(self, values: Float[Array, "... dims"]) -> Float[Array, "... dims"]:
        """Squashes each dimension to the range in which rounding gives one of its levels."""
        half = (self.levels - 1).astype(np.float32) * np.float32(1.001) / 2
        offset = np.where(self.levels % 2 == 0, np.float32(0.5), np.float32(0))
        return jnp.tanh(values + np.arctanh(offset / half)) * half - offset

    def quantize(self, values: Float[Array, "... dims"]) -> tuple[Float[Array, "... dims"], Int[Array, "..."]]:
        """Returns codes in −1…1 with straight-through gradients, and their indices."""
        bounded = self.bound(values)
        rounded = lax.stop_gradient(jnp.round(bounded))
        codes = (rounded + (bounded - lax.stop_gradient(bounded))) / self.half_width
        indices = jnp.sum((rounded.astype(jnp.int32) + self.half_width) * self.basis, axis=-1)
        return codes, indices

    def codes(self, indices: Int[Array, "..."]) -> Float[Array, "... dims"]:
        """Returns the codes of indices."""
        return ((indices[..., None] // self.basis) % self.levels - self.half_width) / self.half_width


class ResidualFSQ(nn.Module):
    """Quantizers in sequence, in float32: number i quantizes the remaining residual on the scale (levels − 1)^−i."""

    dim: int
    levels: tuple[int, ...]
    num_quantizers: int = 1

    def setup(self) -> None:
        self.fsq = FiniteScalarQuantizer(self.levels)
        spread = np.asarray(self.levels, np.float32) - 1
        self.scales = [spread ** np.float32(-i) for i in range(self.num_quantizers)]
        if self.dim != len(self.levels):
            self.project_in = Linear(len(self.levels), ("embed", None))
            self.project_out = Linear(self.dim, (None, "embed"))

    def _project_out(self, codes: Float[Array, "batch tokens levels"]) -> Float[Array, "batch tokens dim"]:
        return codes if self.dim == len(self.levels) else self.project_out(codes)

    def __call__(
        self, inputs: Float[Array, "batch tokens dim"]
    ) -> tuple[Float[Array, "batch tokens dim"], Int[Array, "batch quantizers tokens"]]:
        inputs = inputs.astype(jnp.float32)
        residual = inputs if self.dim == len(self.levels) else self.project_in(inputs)
        total = jnp.zeros_like(residual)
        indices = []
        for scale in self.scales:
            codes, index = self.fsq.quantize(residual / scale)
            total = total + codes * scale
            residual = residual - lax.stop_gradient(codes * scale)
            indices.append(index)
        return self._project_out(total), jnp.stack(indices, axis=1)

    def decode(self, indices: Int[Array, "batch quantizers tokens"]) -> Float[Array, "batch tokens dim"]:
        """Returns the quantized vectors of indices."""
        codes = [self.fsq.codes(indices[:, i]) * scale for i, scale in enumerate(self.scales)]
        return self._project_out(sum(codes))
