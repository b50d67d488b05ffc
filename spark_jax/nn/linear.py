"""Linear layer whose kernel axes carry logical names; products as plain matrix products."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spark_jax.nn.convolution import Initializer, torch_uniform


class Linear(nn.Module):
    """inputs @ kernel + bias; kernel [in, out], fp32 parameters, computed in `dtype`."""

    features: int
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    use_bias: bool = True
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

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
    """x @ kernel with the leading axes of x made one.

    XLA's CPU backend copies and transposes both sides of a weight gradient that sums over several axes; over a
    single one it does not: an MLP's step takes half the time. Other backends see the same product.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def flat_dot_general(
    lhs: Array, rhs: Array, dimension_numbers: Any, precision: Any = None, preferred_element_type: Any = None
) -> Array:
    """`jax.lax.dot_general` for `nn.DenseGeneral`: the last axes of lhs times the first of rhs, see `flat_matmul`."""
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
    """The product of two arrays in float32; its gradient's products are in the arrays' own type.

    Of a float32 cotangent and bfloat16 arrays JAX would make float32 products, several times slower.
    """
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _wide_einsum_forward(equation: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return wide_einsum(equation, a, b), (a, b)


def _wide_einsum_backward(equation: str, operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    product, pullback = jax.vjp(partial(jnp.einsum, equation), *operands)
    return pullback(cotangent.astype(product.dtype))


wide_einsum.defvjp(_wide_einsum_forward, _wide_einsum_backward)
