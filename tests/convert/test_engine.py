"""The conversion engine: axes both ways, stacking, and faults reported together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.convert.engine import Export, Import, Rule, Table, source_shapes
from spark_jax.convert.formats.tensors import BFLOAT16, SourceTensor
from spark_jax.shared.pytree import flatten, unflatten

RULES = [
    Rule("embed", "params/embed"),
    Rule("layers.{}.q", "params/layers/query", "(heads dim) in -> in heads dim", layers=3),
    Rule("layers.{}.o", "params/layers/out", "out (heads dim) -> heads dim out", layers=3),
    Rule("conv.g", "params/conv/g", "out 1 1 -> out"),
    Rule("conv.v", "params/conv/v", "out in kernel -> kernel in out"),
    Rule("flat", "params/flat", "out (channels time) -> (time channels) out", sizes={"time": 2}),
]


TABLE = Table(
    RULES,
    ignored=(r".*\.num",),
    copies={"head": "embed"},
    aliases=((r"^model\.", ""),),
    constants={"counter.num": np.array(3), "idle": np.ones(2, np.float32)},
)


def source(tensors):
    return {name: SourceTensor(t.shape, t.dtype, lambda t=t: t) for name, t in tensors.items()}


def imported(tensors, target):
    """Tree and faults."""
    job = Import(TABLE, source(tensors), target)
    return (unflatten(dict(job.leaves())) if not job.faults else None), job.faults


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    shapes = {"embed": (7, 6), "conv.g": (5, 1, 1), "conv.v": (5, 4, 3), "flat": (5, 6)}
    for layer in range(3):
        shapes |= {f"layers.{layer}.q": (8, 6), f"layers.{layer}.o": (6, 8)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def target():
    shapes = {
        "embed": (7, 6),
        "layers": {"query": (3, 6, 2, 4), "out": (3, 2, 4, 6)},
        "conv": {"g": (5,), "v": (3, 4, 5)},
        "flat": (6, 5),
    }
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return {"params": jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape)}


def test_import(tensors, target):
    tree, faults = imported(tensors, target)
    assert not faults
    tree = tree["params"]
    assert jax.tree.map(np.shape, tree) == jax.tree.map(lambda leaf: leaf.shape, target["params"])
    np.testing.assert_array_equal(tree["embed"], tensors["embed"])
    for i in range(3):
        query = tensors[f"layers.{i}.q"].T.reshape(6, 2, 4)
        np.testing.assert_array_equal(tree["layers"]["query"][i], query)
        np.testing.assert_array_equal(tree["layers"]["out"][i], tensors[f"layers.{i}.o"].T.reshape(2, 4, 6))
    np.testing.assert_array_equal(tree["conv"]["g"], tensors["conv.g"][:, 0, 0])
    np.testing.assert_array_equal(tree["conv"]["v"], tensors["conv.v"].transpose(2, 1, 0))
    flat = tensors["flat"].reshape(5, 3, 2).transpose(2, 1, 0).reshape(6, 5)
    np.testing.assert_array_equal(tree["flat"], flat)


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16])
def test_every_rule_reads_backwards(tensors, target, dtype):
    tensors = {name: values.astype(dtype) for name, values in tensors.items()}
    tree, _ = imported(tensors, target)
    job = Export(TABLE, target, np.dtype(dtype))
    back = dict(job.tensors(flatten(tree).items()))
    assert {name: (values.shape, values.dtype) for name, values in back.items()} == job.specifications
    assert back.pop("counter.num") == 3
    np.testing.assert_array_equal(back.pop("idle"), np.ones(2, dtype))
    assert back.keys() == tensors.keys() and not job.faults
    for name, values in tensors.items():
        np.testing.assert_array_equal(back[name], values)
    assert source_shapes(RULES, target) == {name: values.shape for name, values in tensors.items()}


def test_types_follow_the_target(tensors, target):
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), target)
    tree, _ = imported(tensors, target)
    np.testing.assert_array_equal(tree["params"]["embed"], tensors["embed"].astype(jnp.bfloat16))


def test_all_faults_come_together_and_nothing_is_read(tensors, target):
    def never():
        raise AssertionError("read")

    faulty = {f"model.{name}": SourceTensor(t.shape, t.dtype, never) for name, t in tensors.items()}
    del faulty["model.layers.1.q"], faulty["model.embed"]
    float32 = np.dtype("f4")
    faulty["model.conv.v"] = SourceTensor((5, 3, 4), float32, never)
    faulty["model.flat"] = SourceTensor((5, 7), float32, never)
    faulty["model.layers.0.o"] = SourceTensor((6, 8), np.dtype("i8"), never)
    faulty["model.layers.2.o"] = SourceTensor((), float32, never, "is truncated")
    faulty["head.weight"] = SourceTensor((2,), float32, never)
    faulty["layers.3.q"] = SourceTensor((8, 6), float32, never)
    faulty["conv.g"] = SourceTensor((5, 1, 1), float32, never)
    faulty["counter.num"] = SourceTensor((), np.dtype("i8"), never)
    assert sorted(Import(TABLE, faulty, target).faults) == sorted(
        [
            "missing layers.1.q [8, 6]",
            "missing embed [7, 6]",
            "model.conv.v is transposed: [5, 3, 4], expected [5, 4, 3]",
            "model.flat is misshapen: [5, 7], expected [5, 6]",
            "model.layers.0.o holds int64, expected floating-point numbers",
            "model.layers.2.o is truncated",
            "conv.g and model.conv.g name the same tensor",
            "extra head.weight [2]",
            "extra layers.3.q [8, 6]",
        ]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", BFLOAT16])
def test_values_that_are_not_finite_are_named(tensors, target, value, dtype):
    tensors = tensors | {name: tensors[name].astype(dtype) for name in ("layers.1.o", "conv.g")}
    for name in ("layers.1.o", "conv.g"):
        tensors[name][(-1,) * tensors[name].ndim] = value
    job = Import(TABLE, source(tensors), target)
    assert not job.faults
    leaves = list(job.leaves())
    assert job.faults == [f"{n} holds values that are not finite as float32" for n in ("layers.1.o", "conv.g")]
    out = Export(TABLE, target, np.dtype("float32"))
    list(out.tensors(leaves))
    assert out.faults == job.faults


def test_values_beyond_the_type_are_named(tensors, target):
    tensors = tensors | {"conv.g": tensors["conv.g"].astype("f8") * 1e300}
    job = Import(TABLE, source(tensors), target)
    list(job.leaves())
    assert job.faults == ["conv.g holds values that are not finite as float32"]


def test_a_copy_must_equal_its_original(tensors, target):
    assert not imported(tensors | {"head": tensors["embed"]}, target)[1]
    job = Import(TABLE, source(tensors | {"head": tensors["embed"] + 1}), target)
    list(job.leaves())
    assert job.faults == ["head differs from embed, which it has to equal"]
    assert imported(tensors | {"head": tensors["embed"].T}, target)[1] == [
        "head is transposed: [6, 7], expected [7, 6]"
    ]


def test_a_table_that_does_not_fill_the_tree_is_a_bug(tensors, target):
    with pytest.raises(LookupError, match="params/embed"):
        Import(Table(RULES[1:]), source(tensors), target)
    wrong = [*RULES[:4], Rule("conv.v", "params/conv/v", "out in -> in out"), RULES[5]]
    with pytest.raises(LookupError, match="does not fit the shape"):
        Import(Table(wrong), source(tensors), target)
