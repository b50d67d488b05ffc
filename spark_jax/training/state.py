"""The train state: one pytree that holds all that a step reads and writes, and the guarded update of a part of it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Int

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


class TrainState(struct.PyTreeNode):
    """State of a training run; donated to each step.

    Attributes:
      step: steps taken, skipped ones included.
      params: parameters (any tree; the codec keeps `{"generator": …, "discriminator": …}`).
      opt_state: optimizer state(s), in the same manner.
      collections: mutable Linen collections (BatchNorm statistics, code usage); empty where there are none.
      skipped: updates left out because a gradient was not finite.
    """

    step: Int[Array | np.ndarray, ""]
    params: Any
    opt_state: Any
    collections: Any
    skipped: Int[Array | np.ndarray, ""]


def new_state(variables: Any, init_optimizer: Callable[[Any], Any]) -> TrainState:
    """Returns the state before the first step.

    Args:
      variables: of `module.init`, with Linen's boxes, which `sharding.initialize` needs.
      init_optimizer: makes the optimizer's state of the parameters.
    """
    collections = dict(variables)
    params = collections.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=init_optimizer(params),
        collections=collections,
        skipped=jnp.zeros((), jnp.int32),
    )


def guarded_update(
    loss: Array, grads: Any, opt_state: Any, params: Any, optimizer: optax.GradientTransformation
) -> tuple[Any, Any, dict[str, Array]]:
    """Makes one optimizer update, or none at all when the loss or the gradient is not finite.

    The global norm is NaN or Inf exactly when some gradient is (or the sum overflows), so it alone is tested. A
    NaN loss can have a finite gradient: comparisons with NaN, as in a maximum, choose a branch.

    Returns:
      params, opt_state, and `{"grad_norm", "skipped"}` (before clipping; 1.0 where the update was left out).
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    updates, new_opt_state = optimizer.update(grads, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    return (
        jax.tree.map(keep, new_params, params),
        jax.tree.map(keep, new_opt_state, opt_state),
        {"grad_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32)},
    )


def advance(state: TrainState, params: Any, opt_state: Any, skipped: Array, collections: Any = None) -> TrainState:
    """Returns the state after one step.

    Args:
      skipped: what `guarded_update` reported.
      collections: the new ones; None: they stay as they are.
    """
    return state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        collections=state.collections if collections is None else collections,
        skipped=state.skipped + skipped.astype(jnp.int32),
    )
