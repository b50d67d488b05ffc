"""The two programs over the slots, on the golden decoder: greedy answers are the reference's."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.inference import slots
from spark_jax.inference.sampling import Sampling
from spark_jax.qwen2.model import Qwen2
from spark_jax.text.grammar import Grammar

spec = importlib.util.spec_from_file_location("qwen2_reference", Path(__file__).parents[1] / "qwen2" / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


@pytest.mark.parametrize(("block", "apart"), [(1, False), (5, False), (5, True)])
def test_greedy_equals_the_golden(block, apart):
    config, params, golden = reference.load()
    model, prompt, expected = Qwen2(config), golden["in/input_ids"][:1], golden["greedy/new_ids"].tolist()
    everything = Grammar(
        jnp.ones((1, config.vocab_size), bool), jnp.zeros(2, jnp.int32), jnp.int32(-1), ("semantic", "done")
    )
    tables = params["embed"]["embedding"], model.apply({"params": params}, method=Qwen2.output_table)
    head = slots.Head(*tables)
    one = jnp.ones(1, jnp.int32)
    greedy = Sampling(jnp.ones(1), jnp.ones(1), one, jnp.ones(1, bool))
    prompts = slots.Prompts(
        jnp.pad(prompt, ((0, 0), (0, 5))),
        one * prompt.shape[1],
        one * 2,
        one * 0,
        one * 24,
        jnp.zeros(1, jnp.uint32),
        greedy,
    )
    state = slots.init_state(model, 3, 128, done=1)
    state = jax.jit(partial(slots.admit, model, 4))(params, head, everything, state, prompts)
    go_on = jax.jit(partial(slots.decode_block, model, 4, block, 128, apart=apart))
    found, flags = [], np.zeros(3)
    while flags[2] == slots.RUNNING:
        state, codes, flags = go_on(params, head, everything, state)
        assert np.all(codes[:2] == -1)
        found += codes[2][codes[2] >= 0].tolist()
    assert found == expected and flags[2] == slots.CUT_OFF
