"""The language model's training as a program: model, optimizer, fresh state, step, evaluation and batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.nn.attention import choose_backend
from spark_jax.performance import flops
from spark_jax.qwen2.model import Qwen2
from spark_jax.training import program
from spark_jax.training.llm import step
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.optimizer import make_optimizer, make_schedule
from spark_jax.training.state import TrainState, new_state


def llm_program(
    config: LLMTrainingConfig, system: SparkConfig, devices: Sequence[jax.Device] | None = None
) -> program.Program:
    """Returns the language model's training.

    Args:
      devices: to train on; None: all of this run's processes.

    Raises:
      SparkError: a mesh that does not fit the devices or the batch; attention that the devices do not have.
    """
    mesh = program.make_mesh(config.mesh, devices)
    program.check_rows("data.batch_rows", config.data.batch_rows, mesh)
    dtype = jnp.dtype(config.dtype)
    attention = choose_backend(config.attention, mesh, dtype)
    model = Qwen2(system.llm, dtype, config.unroll_layers, attention, config.remat)
    optimizer = make_optimizer(config.optimizer, config.loop.steps)

    def init() -> TrainState:
        variables = model.init(jax.random.key(config.loop.seed), jnp.zeros((1, 2), jnp.int32))
        return new_state({"params": variables["params"]}, optimizer.init)

    shape = (config.data.batch_rows * config.accumulate, config.data.row_length)
    types = dict.fromkeys(("input_ids", "targets", "positions", "segment_ids"), jnp.int32)
    types |= dict.fromkeys(("classes", "tasks"), jnp.int8)
    return program.Program(
        mesh=mesh,
        init=init,
        step=step.llm_step(model, optimizer, config.accumulate, config.loss_chunk),
        evaluation=step.llm_evaluation(model, config.loss_chunk),
        batch={name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in types.items()},
        rate="tokens",
        schedules={"learning_rate": make_schedule(config.optimizer, config.loop.steps)},
        options=sharding.compiler_options(mesh, config.mesh.cpu_block_mb),
    )


def llm_full_step_flops(config: LLMTrainingConfig, system: SparkConfig) -> float:
    """Returns the useful operations of a step whose rows are one sequence each, all of it targets.

    Rows of several shorter sequences take less.
    """
    rows, length = config.data.batch_rows * config.accumulate, config.data.row_length
    return flops.llm_step_flops(system.llm, rows * length, rows * length, rows * flops.causal_pairs([length]))
