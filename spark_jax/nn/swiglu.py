"""The gated activation of SwiGLU (arXiv 2002.05202), which keeps its inputs alone for the gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def swiglu(gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
    """silu(gate) · up.

    Left to autodiff, the sigmoid and silu(gate) are kept for the gradient besides the inputs, two arrays of the widest
    size a layer, and written and read again on the way forward.
    """
    return jax.nn.silu(gate) * up


def _backward(inputs, gradient):
    gate, up, gradient = (x.astype(jnp.float32) for x in (*inputs, gradient))
    # As a tanh, which XLA does not recognise as the forward pass's sigmoid: it would keep that one again.
    sigmoid = 0.5 + 0.5 * jnp.tanh(0.5 * gate)
    silu = gate * sigmoid
    gradients = gradient * up * (sigmoid + silu * (1 - sigmoid)), gradient * silu
    return tuple(ours.astype(theirs.dtype) for ours, theirs in zip(gradients, inputs, strict=True))


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _backward)
