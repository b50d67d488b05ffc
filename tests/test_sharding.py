"""What the mesh makes of the language model's step, read from the compiled program for eight devices."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.qwen2.model import Qwen2
from spark_jax.training.llm import step
from spark_jax.training.optimizer import OptimizerConfig, make_optimizer
from spark_jax.training.state import new_state

# Sizes by which an array is known: only activations have a multiple of 47, only the vocabulary one of 61.
ROWS, TIME, VOCAB, HIDDEN = 16, 47, 488, 32
CONFIG = dataclasses.replace(
    tiny().llm,
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


class Compiled:
    """The step for a mesh, its state's shapes and shardings, and its collectives: (computation, kind, shapes)."""

    def __init__(self, shape):
        self.mesh = sharding.make_mesh(*shape)
        model, optimizer = Qwen2(CONFIG), make_optimizer(OptimizerConfig(warmup_steps=0, schedule="constant"), 10)

        def init():
            variables = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
            return new_state({"params": variables["params"]}, optimizer.init)

        self.boxed = jax.eval_shape(init)
        self.state, self.shardings = sharding.unbox(self.boxed), sharding.tree_shardings(self.mesh, self.boxed)
        names = ("input_ids", "targets", "positions", "segment_ids", "classes")
        batch = {name: jax.ShapeDtypeStruct((ROWS, TIME), jnp.int32) for name in names}
        jitted = sharding.jit_step(step.llm_step(model, optimizer, 1, 20), self.mesh, self.shardings)
        self.compiled = jitted.lower(self.state, batch).compile()
        self.collectives, computation = [], None
        for line in self.compiled.as_text().splitlines():
            if line.endswith("{") and not line.startswith(" "):
                computation = line.split(" ")[0]
            if found := re.search(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", line):
                shapes = re.findall(r"([a-z]+\d+)\[([\d,]*)\]", found[1])
                shapes = [(kind, tuple(map(int, sizes.split(","))) if sizes else ()) for kind, sizes in shapes]
                self.collectives.append((computation, found[2], shapes))


@pytest.fixture(scope="module", params=[(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=lambda shape: "x".join(map(str, shape)))
def compiled(request):
    return Compiled(request.param)


@pytest.mark.extended
def test_no_device_sees_the_activations_of_others(compiled):
    """What is gathered are weights and token ids; what of activations is exchanged is at most a device's own rows."""
    data, fsdp, _ = (compiled.mesh.shape[axis] for axis in sharding.MESH_AXES)
    own = ROWS * TIME // (data * fsdp)
    kinds = set()
    for _, kind, shapes in compiled.collectives:
        kinds.add(kind)
        activations = [sizes for dtype, sizes in shapes if dtype == "f32" and any(size % TIME == 0 for size in sizes)]
        if kind == "all-gather":
            assert not activations, shapes
        assert sum(map(math.prod, activations)) <= 3 * own * HIDDEN  # three: q, k, v summed in one operation
    assert ("all-gather" in kinds) == (fsdp > 1)
    assert kinds <= {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"} and "all-reduce" in kinds


@pytest.mark.extended
def test_every_gradient_is_summed_once_and_the_table_outside_of_loops(compiled):
    _, fsdp, tensor = (compiled.mesh.shape[axis] for axis in sharding.MESH_AXES)
    of_table = [
        (computation, kind)
        for computation, kind, shapes in compiled.collectives
        if any(dtype == "f32" and sizes and max(sizes) % 61 == 0 for dtype, sizes in shapes)
    ]
    assert {computation for computation, _ in of_table} == {"ENTRY"}
    gathers, scatters = (sum(found == kind for _, found in of_table) for kind in ("all-gather", "reduce-scatter"))
    assert gathers == scatters == (fsdp > 1)
    # Of each layer's kernel, [32, 80] of the MLP, divided over tensor where there is one.
    wide = (HIDDEN, CONFIG.intermediate_size // tensor)
    sums = sum(("f32", wide) in shapes for _, kind, shapes in compiled.collectives if kind == "all-reduce")
    assert sums >= 1


def test_the_optimizer_state_is_divided(compiled):
    """Bytes on a device: of what names both axes, one part in fsdp x tensor; and the program has no more."""
    fsdp, tensor = compiled.mesh.shape["fsdp"], compiled.mesh.shape["tensor"]
    is_box = lambda leaf: hasattr(leaf, "names")  # noqa: E731
    total = expected = 0
    for leaf in jax.tree.leaves(compiled.boxed, is_leaf=is_box):
        names = leaf.names if is_box(leaf) else ()
        size = (leaf.value if is_box(leaf) else leaf).size * 4
        total, expected = (
            total + size,
            expected
            + size
            // (
                (fsdp if "embed" in names else 1)
                * (tensor if {"heads", "kv_heads", "mlp", "vocab"} & set(names) else 1)
            ),
        )
    state, _ = sharding.initialize(
        compiled.mesh,
        lambda: jax.tree.map(
            lambda leaf: leaf.replace_boxed(jnp.zeros(leaf.value.shape)) if is_box(leaf) else jnp.zeros(leaf.shape),
            compiled.boxed,
            is_leaf=is_box,
        ),
    )
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert held == expected
    assert expected < 1.06 * total / (fsdp * tensor)  # norms and biases, which are not divided as much
    batch = 5 * ROWS * TIME * 4 // math.prod(compiled.mesh.shape[axis] for axis in ("data", "fsdp"))
    assert compiled.compiled.memory_analysis().argument_size_in_bytes == expected + batch


def test_without_a_mesh_nothing_is_divided():
    x = jnp.arange(8.0)
    assert sharding.constrain(x, "batch") is x
    assert sharding.per_device(np.sin, (("batch",),), ("batch",)) is np.sin
    assert sharding.device_axes("batch") == ()
