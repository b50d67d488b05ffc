"""The compiler option that divides a step's temporaries on CPUs, which malloc then keeps from step to step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax import sharding


@pytest.mark.filterwarnings("ignore:Error writing persistent:UserWarning")  # such programs cannot be kept
@pytest.mark.parametrize("megabytes", [None, 16])
def test_temporaries_come_in_blocks(megabytes, tmp_path):
    """A gradient through 16 arrays of 4 MB, by what XLA writes down of its buffers."""
    mesh = sharding.make_mesh(1)
    weights = np.full((16, 64, 64), 0.02, np.float32)
    x = np.linspace(-1, 1, 2**20, dtype=np.float32).reshape(-1, 64)

    def loss(weights, x):
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return jnp.sum(x)

    options = sharding.compiler_options(mesh, megabytes)
    function = sharding.jit_eval(jax.grad(loss), mesh, sharding.replicated(mesh), options)
    compiled = function.lower(weights, x).compile(dict(options or {}, xla_dump_to=str(tmp_path)))
    (dump,) = tmp_path.glob("*buffer-assignment.txt")
    pattern = re.compile(r"^allocation \d+: size (\d+),.* preallocated-temp", re.MULTILINE)
    sizes = [int(size) for size in pattern.findall(dump.read_text())]
    if megabytes is None:
        assert max(sizes) > 60e6
    else:
        assert len(sizes) >= 4 and max(sizes) <= 16e6
    plain = jax.jit(jax.grad(loss))(weights, x)
    np.testing.assert_array_equal(jax.device_get(compiled(weights, x)), plain)
