"""FLOPs: formulas against counts of traced programs, and counts against products whose size is known."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.config import Qwen2Config
from spark_jax.data.config import TokenDataConfig
from spark_jax.performance import flops
from spark_jax.training.config import MeshConfig
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.llm.program import llm_program

SYSTEM = tiny()


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "attention_bias": False, "head_dim": 16}])
def test_the_language_models_formula_is_what_its_step_computes(changes):
    """XLA's attention computes all pairs, and with one chunk no logits are computed twice."""
    llm = dataclasses.replace(SYSTEM.llm, **changes)
    config = LLMTrainingConfig(
        data=TokenDataConfig(row_length=64, batch_rows=4), loss_chunk=10_000, accumulate=2, mesh=MeshConfig(data=1)
    )
    program = llm_program(config, dataclasses.replace(SYSTEM, llm=llm))
    counted = flops.traced_flops(program.step, program.abstract_state(), program.batch)
    rows = config.data.batch_rows * config.accumulate
    formula = flops.llm_step_flops(llm, rows * 64, rows * 64, rows * 64**2)
    assert counted == pytest.approx(formula, rel=0.02)


def test_the_release_costs_six_operations_a_weight_and_token():
    config = Qwen2Config()
    without_attention, with_attention = (flops.llm_step_flops(config, 1, 1, pairs) for pairs in (0, 2048 / 2))
    assert without_attention == pytest.approx(6 * 506.6e6, rel=0.001)  # tied: the head's weights
    assert with_attention - without_attention == 12 * 24 * 896 * 1024
    assert without_attention - flops.llm_step_flops(config, 1, 0, 0) == 6 * 896 * config.vocab_size


def test_pairs_of_packed_sequences():
    assert flops.causal_pairs([1, 2, 3]) == 1 + 3 + 6
    assert flops.causal_pairs([2048] * 10**6) == 10**6 * 2048 * 2049 // 2  # beyond 32 bits


def count(function, *shapes):
    return flops.traced_flops(function, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


def test_known_products():
    product = 2 * 3 * 4 * 5
    assert count(jnp.matmul, (3, 4), (4, 5)) == product
    assert count(lambda a, b: jax.lax.map(lambda x: x @ b, a), (7, 3, 4), (4, 5)) == 7 * product
    assert count(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 5))), (3, 4), (4, 5)) == (
        product
    )
    assert count(jax.checkpoint(jnp.matmul), (3, 4), (4, 5)) == product
    loss = lambda a, b: jnp.sum(jnp.tanh(a @ b))  # noqa: E731
    assert count(jax.grad(loss, (0, 1)), (3, 4), (4, 5)) == 3 * product
    assert count(lambda a, b: (a @ b, b)[1], (3, 4), (4, 5)) == 0
    mesh = sharding.make_mesh(2, 4, 1)
    divided = jax.P(("data", "fsdp"))
    rows = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(divided, jax.P()), out_specs=divided)
    assert count(rows, (16, 4), (4, 5)) == 2 * 16 * 4 * 5
    with pytest.raises(ValueError, match="unknown length"):
        count(lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, a), (4, 4))


def test_known_convolutions_and_their_gradients():
    def convolve(x, kernel, **settings):
        return jax.lax.conv_general_dilated(
            x, kernel, padding="VALID", dimension_numbers=("NHC", "HIO", "NHC"), **settings
        )

    same = 2 * 2 * 98 * 8 * (3 * 4)
    assert count(lambda x, k: convolve(x, k, window_strides=(1,)), (2, 100, 4), (3, 4, 8)) == same
    assert count(lambda x, k: convolve(x, k, window_strides=(1,), feature_group_count=4), (2, 100, 4), (3, 1, 8)) == (
        same / 4
    )
    strided = lambda x, k: jnp.sum(convolve(x, k, window_strides=(2,)) ** 2)  # noqa: E731
    forward = 2 * 2 * 49 * 8 * (3 * 4)
    assert count(strided, (2, 100, 4), (3, 4, 8)) == forward
    # Taps that reach over the edge count in the input's gradient.
    assert count(jax.grad(strided, (0, 1)), (2, 100, 4), (3, 4, 8)) == pytest.approx(3 * forward, rel=0.05)
