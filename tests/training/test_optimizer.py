import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.errors import SparkError
from spark_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


def test_linear_reaches_the_floor():
    schedule = make_schedule(OptimizerConfig(1.0, "linear", 10, 110, floor=0.1), steps=1000)
    assert np.isclose(schedule(0), 0.1) and np.isclose(schedule(9), 1.0) and np.isclose(schedule(10), 1.0)
    assert np.isclose(schedule(60), 0.55)
    assert np.isclose(schedule(110), 0.1) and np.isclose(schedule(900), 0.1)


def test_cosine_ends_with_the_run():
    schedule = make_schedule(OptimizerConfig(1.0, "cosine", 0), steps=100)
    assert np.isclose(schedule(0), 1.0) and np.isclose(schedule(50), 0.5) and np.isclose(schedule(100), 0.0)


def test_inverse_square_root_with_decay_factor_and_floor():
    config = OptimizerConfig(1e-3, "inverse_sqrt", 5000, floor=1e-5, decay_factor=0.5, decay_factor_step=400_000)
    schedule = make_schedule(config, steps=10)
    assert np.isclose(schedule(4999), 1e-3) and np.isclose(schedule(20_000), 5e-4)
    assert np.isclose(schedule(399_999), 1e-3 * np.sqrt(5000 / 399_999))
    assert np.isclose(schedule(400_000), 0.5e-3 * np.sqrt(5000 / 400_000))
    assert np.isclose(schedule(2_000_000_000), 1e-5)


def test_a_decay_inside_the_warm_up_is_an_error():
    with pytest.raises(SparkError, match="ends at step 50, before the warm-up of 100"):
        make_schedule(OptimizerConfig(schedule="linear", warmup_steps=100), steps=50)


def test_weight_decay_spares_vectors_and_the_gradient_is_clipped():
    config = OptimizerConfig(0.1, "constant", 0, weight_decay=0.5, clip_norm=1.0)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, state = optimizer.update(zeros, optimizer.init(params), params)
    assert np.allclose(updates["kernel"], -0.05) and np.allclose(updates["bias"], 0.0)
    _, state = optimizer.update({"kernel": jnp.full((2, 2), 100.0), "bias": jnp.zeros(2)}, state, params)
    mean = state[1][0].mu["kernel"]
    assert np.allclose(mean, 0.1 * 0.5)  # clipped to norm 1: 0.5 each
