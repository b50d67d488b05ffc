"""A run that takes a second: linear regression on random crops, through the real pipeline, loop and checkpoints."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.data import pipeline
from spark_jax.training import loop
from spark_jax.training.config import LoopConfig
from spark_jax.training.optimizer import OptimizerConfig, make_optimizer
from spark_jax.training.program import Program
from spark_jax.training.run import Run
from spark_jax.training.state import advance, guarded_update, new_state

SIGNALS = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)


class Regression(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        return nn.Dense(1)(nn.tanh(nn.Dense(16, kernel_init=init)(x)))


class Toy:
    """One run in `directory`; every object is made anew, as after a kill."""

    def __init__(self, directory, steps, step_hook=None, load_hook=None, **changes):
        self.directory = directory
        settings = {"log_every": 1, "checkpoint_every": 5, "evaluate_every": 1000}
        self.config = LoopConfig(steps=steps, **settings | changes)
        self.model = Regression()
        self.optimizer = make_optimizer(OptimizerConfig(warmup_steps=2, schedule="constant"), steps)
        self.mesh = sharding.make_mesh(2, 2, 1)
        self._step_hook, self._load_hook = step_hook, load_hook

    def init(self):
        return new_state(self.model.init(jax.random.key(0), jnp.zeros((1, 8))), self.optimizer.init)

    def step(self, state, batch):
        def loss_fn(params):
            return jnp.mean((self.model.apply({"params": params}, batch["x"])[:, 0] - batch["y"]) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        params, opt_state, report = guarded_update(loss, grads, state.opt_state, state.params, self.optimizer)
        return advance(state, params, opt_state, report["skipped"]), {"loss": loss, **report}

    def load(self, indices, rngs):
        starts = [rng.integers(0, 32) for rng in rngs]
        x = np.stack([SIGNALS[i, start : start + 8] for i, start in zip(indices, starts, strict=True)])
        if self._load_hook is not None:
            self._load_hook(x)
        return {"x": x, "y": x.sum(axis=1)}

    def program(self, schedules=None):
        return Program(self.mesh, self.init, self.step, lambda state, batch: {}, {}, schedules=schedules or {})

    def run(self, evaluate=None, schedules=None, counts=None, step_flops=None, peak_flops=None):
        program = self.program(schedules)
        run = Run(self.directory, program, tiny(), self.config, step_flops)
        run.peak_flops = peak_flops
        if counts is not None:
            run.data_counts = counts
        data = pipeline.batches(pipeline.shuffled_plan(50, 8, 0), self.load, 100, seed=0, threads=1)
        state, shardings = run.initialize_or_restore(data)
        step_at = program.jit_step_at(shardings)

        def hooked(number):
            if self._step_hook is not None:
                self._step_hook(number)
            return step_at(number)

        try:
            return loop.fit(run, state, hooked, data, evaluate)
        finally:
            run.close()


@pytest.fixture
def toy():
    return Toy
