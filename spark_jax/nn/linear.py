"""Linear layer with logical axis names, and matrix products whose gradients are fast."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from spark_jax.nn.convolution import Initializer, torch_uniform


class Linear(nn.Module):
    """Computes inputs @ kernel + bias in `dtype`; the parameters are float32, the kernel [in, out]."""

    features: int
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    use_bias: bool = True
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer = nn.initializers.zeros
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "... in"]) -> Float[Array, "... out"]:
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, self.axes),
            (inputs.shape[-1], self.features),
            jnp.float32,
        )
        outputs = flat_matmul(inputs.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param(
                "bias", nn.with_logical_partitioning(self.bias_init, self.axes[1:]), (self.features,), jnp.float32
            )
            outputs = outputs + bias.astype(self.dtype)
        return outputs


def flat_matmul(x: Float[Array, "... in"], kernel: Float[Array, "in out"]) -> Float[Array, "... out"]:
    """Computes x @ kernel with the leading axes of x merged into one.

    XLA's CPU backend copies and transposes both operands of a weight gradient that sums over several axes, but not
    over a single one: a step of an MLP takes half the time. For other backends the product is the same.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def no_single_row(x: Shaped[Array, "rows in"]) -> Shaped[Array, "_ in"]:
    """Returns a single row with another of zeros, and several rows as they are.

    A product of one row is rounded in another way than that of many. Where its error would add up over time, as that of
    a harmonic source's frequency does, an item alone must give the same bits as in a batch.
    """
    return x if x.shape[0] > 1 else jnp.pad(x, ((0, 1), (0, 0)))


def flat_dot_general(
    lhs: Array, rhs: Array, dimension_numbers: Any, precision: Any = None, preferred_element_type: Any = None
) -> Array:
    """Replaces `jax.lax.dot_general` in `nn.DenseGeneral`: last axes of lhs times first axes of rhs (`flat_matmul`)."""
    count = len(dimension_numbers[0][0])
    inputs, outputs = math.prod(rhs.shape[:count]), rhs.shape[count:]
    product = jax.lax.dot_general(
        lhs.reshape(-1, inputs),
        rhs.reshape(inputs, -1),
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return product.reshape(*lhs.shape[: lhs.ndim - count], *outputs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_einsum(equation: str, a: Array, b: Array) -> Float[Array, "..."]:
    """Computes the product of two arrays in float32, and the products of its gradient in the arrays' own type.

    From a float32 cotangent and bfloat16 arrays JAX would make float32 products, which are several times slower.
    """
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _wide_einsum_forward(equation: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return wide_einsum(equation, a, b), (a, b)


def _wide_einsum_backward(equation: str, operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    product, pullback = jax.vjp(partial(jnp.einsum, equation), *operands)
    return pullback(cotangent.astype(product.dtype))


wide_einsum.defvjp(_wide_einsum_forward, _wide_einsum_backward)
