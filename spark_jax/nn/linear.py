"""Linear layer whose kernel axes carry logical names."""

import flax.linen as nn
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
            "kernel", nn.with_logical_partitioning(self.kernel_init, self.axes),
            (inputs.shape[-1], self.features), jnp.float32,
        )  # fmt: skip
        outputs = inputs.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param(
                "bias", nn.with_logical_partitioning(self.bias_init, self.axes[1:]), (self.features,), jnp.float32
            )
            outputs = outputs + bias.astype(self.dtype)
        return outputs
