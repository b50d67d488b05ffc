"""AdamW and the learning-rate schedules of the recipes (paper §4.1, the authors' configuration)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from spark_jax.dataclass_reader import PlainNumbers
from spark_jax.errors import SparkError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(PlainNumbers):
    """AdamW with clipping by global norm, after a linear warm-up one of four schedules.

    `decay_steps` counts from step 0, the warm-up included; None: the run's length.
    """

    learning_rate: float = 1e-3  # the peak
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "linear"
    warmup_steps: int = 1000
    decay_steps: int | None = None  # linear and cosine reach the floor here
    floor: float = 0.0
    decay_factor: float = 1.0  # multiplies the rate from decay_factor_step on
    decay_factor_step: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates made.

    Raises:
      SparkError: a decay that ends before the warm-up does.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    end = steps if config.decay_steps is None else config.decay_steps
    if config.schedule in ("linear", "cosine") and end <= warmup:
        raise SparkError(f"optimizer: decay ends at step {end}, before the warm-up of {warmup} steps does")

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        past = jnp.clip((step - warmup) / max(end - warmup, 1), 0.0, 1.0)
        if config.schedule == "linear":
            rate = peak + (config.floor - peak) * past
        elif config.schedule == "cosine":
            rate = config.floor + (peak - config.floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * past))
        elif config.schedule == "inverse_sqrt":
            rate = peak * jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1)))
        else:
            rate = jnp.full((), peak, jnp.float32)
        if config.decay_factor_step is not None:
            rate = jnp.where(step >= config.decay_factor_step, rate * config.decay_factor, rate)
        rate = jnp.maximum(rate, config.floor)
        # step + 1: the first update already moves.
        return jnp.where(step < warmup, peak * (step + 1.0) / max(warmup, 1), rate)

    return schedule


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns clipping by global norm, then AdamW; weight decay only on matrices, not on biases and gains."""
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.betas[0],
        b2=config.betas[1],
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=_matrices,
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _matrices(params):
    """Names tell: gains and biases of layers stacked for a scan have two axes and more, too."""

    def is_matrix(path, leaf):
        return leaf.ndim >= 2 and jax.tree_util.keystr(path[-1:], simple=True) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_matrix, params)
