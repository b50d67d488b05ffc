"""Normalizations; their statistics are in float32 whatever the compute type."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def standardize(inputs: Float[Array, "... channels"], eps: float) -> Float[Array, "... channels"]:
    """Scales the last axis to zero mean and unit (population) variance, in float32."""
    return _standardize(inputs.astype(jnp.float32), eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standardize(inputs: Float[Array, "... channels"], eps: float) -> Float[Array, "... channels"]:
    return _standardize_forward(inputs, eps)[0]


def _standardize_forward(
    inputs: Float[Array, "... channels"], eps: float
) -> tuple[Float[Array, "... channels"], tuple[Float[Array, "... channels"], Float[Array, "... 1"]]]:
    centered = inputs - jnp.mean(inputs, axis=-1, keepdims=True)
    scale = lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + eps)
    standard = centered * scale
    return standard, (standard, scale)


def _standardize_backward(
    eps: float,
    residuals: tuple[Float[Array, "... channels"], Float[Array, "... 1"]],
    gradient: Float[Array, "... channels"],
) -> tuple[Float[Array, "... channels"]]:
    # In closed form from saved values; autodiff would recompute the forward pass (see gelu.py).
    standard, scale = residuals
    mean = jnp.mean(gradient, axis=-1, keepdims=True)
    projection = jnp.mean(gradient * standard, axis=-1, keepdims=True)
    return ((gradient - mean - standard * projection) * scale,)


_standardize.defvjp(_standardize_forward, _standardize_backward)


def l2_normalize(inputs: Float[Array, "... channels"], eps: float = 1e-12) -> Float[Array, "... channels"]:
    """Returns inputs / max(‖inputs‖, eps) over the last axis, in float32; the gradient at zero is finite."""
    inputs = inputs.astype(jnp.float32)
    return inputs * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(inputs), axis=-1, keepdims=True), eps**2))


class LayerNorm(nn.Module):
    """Layer norm over the last axis with scale and bias."""

    eps: float = 1e-6
    axis: str | None = "embed"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "... channels"]) -> Float[Array, "... channels"]:
        scale, bias = _scale_and_bias(self, inputs.shape[-1], self.axis)
        return (standardize(inputs, self.eps) * scale + bias).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch norm over every axis but the last, as torch.nn.BatchNorm1d: the running variance is unbiased.

    The statistics are in the collection "batch_stats". Means are taken over the whole array, so that under jit a batch
    that is divided over devices is normalized by its global statistics.
    """

    eps: float = 1e-5
    momentum: float = 0.1
    axis: str | None = "conv_out"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "... channels"], train: bool) -> Float[Array, "... channels"]:
        channels = inputs.shape[-1]
        scale, bias = _scale_and_bias(self, channels, self.axis)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        inputs = inputs.astype(jnp.float32)
        if train:
            axes = tuple(range(inputs.ndim - 1))
            mean = jnp.mean(inputs, axis=axes)
            var = jnp.mean(jnp.square(inputs - mean), axis=axes)
            if not self.is_initializing():
                count = inputs.size // channels
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        return ((inputs - mean) * (lax.rsqrt(var + self.eps) * scale) + bias).astype(self.dtype)


def _scale_and_bias(module: nn.Module, channels: int, axis: str | None) -> tuple[Array, Array]:
    ones = nn.with_logical_partitioning(nn.initializers.ones, (axis,))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axis,))
    return (
        module.param("scale", ones, (channels,), jnp.float32),
        module.param("bias", zeros, (channels,), jnp.float32),
    )
