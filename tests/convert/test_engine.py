"""The conversion engine: axes both ways, stacking, and faults reported together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.convert.engine import Rule, export_tensors, import_tensors, source_shapes
from spark_jax.convert.tensors import SourceTensor
from spark_jax.errors import SparkError

RULES = [
    Rule("embed", "params/embed"),
    Rule("layers.{}.q", "params/layers/query", "(heads dim) in -> in heads dim", layers=3),
    Rule("layers.{}.o", "params/layers/out", "out (heads dim) -> heads dim out", layers=3),
    Rule("conv.g", "params/conv/g", "out 1 1 -> out"),
    Rule("conv.v", "params/conv/v", "out in kernel -> kernel in out"),
    Rule("flat", "params/flat", "out (channels time) -> (time channels) out", sizes={"time": 2}),
]


def source(tensors):
    return {name: SourceTensor(t.shape, t.dtype, lambda t=t: t) for name, t in tensors.items()}


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
        "embed": (7, 6), "layers": {"query": (3, 6, 2, 4), "out": (3, 2, 4, 6)},
        "conv": {"g": (5,), "v": (3, 4, 5)}, "flat": (6, 5),
    }  # fmt: skip
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return {"params": jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape)}


def test_import(tensors, target):
    tree = import_tensors(RULES, source(tensors), target, origin="file")["params"]
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


def test_every_rule_reads_backwards(tensors, target):
    back = export_tensors(RULES, import_tensors(RULES, source(tensors), target, origin="file"))
    assert back.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(back[name], values)
    assert source_shapes(RULES, target) == {name: values.shape for name, values in tensors.items()}


def test_types_follow_the_target(tensors, target):
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), target)
    tree = import_tensors(RULES, source(tensors), target, origin="file")
    np.testing.assert_array_equal(tree["params"]["embed"], tensors["embed"].astype(jnp.bfloat16))


def test_all_faults_come_together_and_nothing_is_read(tensors, target):
    def never():
        raise AssertionError("read")

    faulty = {name: SourceTensor(t.shape, t.dtype, never) for name, t in tensors.items()}
    del faulty["layers.1.q"], faulty["embed"]
    faulty["conv.v"] = SourceTensor((5, 3, 4), np.dtype("f4"), never)
    faulty["head.weight"] = SourceTensor((2,), np.dtype("f4"), never)
    faulty["layers.3.q"] = SourceTensor((8, 6), np.dtype("f4"), never)
    faulty["counter.num"] = SourceTensor((), np.dtype("i8"), never)
    with pytest.raises(SparkError) as caught:
        import_tensors(RULES, faulty, target, origin="model.bin", ignored=(r".*\.num",))
    message = str(caught.value)
    assert message.startswith("model.bin: 5 tensors do not fit: ") and "\n" not in message
    for part in (
        "missing layers.1.q [8, 6]", "missing embed [7, 6]", "misshapen conv.v [5, 3, 4], expected [5, 4, 3]",
        "extra head.weight [2]", "extra layers.3.q [8, 6]",
    ):  # fmt: skip
        assert part in message
    assert "counter" not in message


def test_a_table_that_does_not_fill_the_tree_is_a_bug(tensors, target):
    with pytest.raises(LookupError, match="params/embed"):
        import_tensors(RULES[1:], source(tensors), target, origin="file")
    wrong = [*RULES[:4], Rule("conv.v", "params/conv/v", "out in -> in out"), RULES[5]]
    with pytest.raises(LookupError, match="does not fit the shape"):
        import_tensors(wrong, source(tensors), target, origin="file")
