"""Conversion as data: a table of rules per model, and the one engine that applies it.

A rule names a tensor of the source, its place in our tree, and how the axes of the one become the axes of the
other. Axes are written as in `"(heads dim) in -> in heads dim"`, which reads both ways: the same table that
imports a tensor says how it is written back.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spark_jax.convert.tensors import SourceTensor
from spark_jax.errors import SparkError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a conversion table.

    Attributes:
      source: name of the source tensor; with `layers`, `{}` stands for the layer's number.
      target: slash-separated path in our tree.
      axes: "source axes -> target axes" by name; parentheses join axes, `1` is an axis of that size.
        Empty: the tensor is taken as it is.
      layers: the target's first axis stacks this many source tensors. None: one source, no such axis.
      sizes: sizes of axes that the target's shape does not tell (all but one of each joined group).
    """

    source: str
    target: str
    axes: str = ""
    layers: int | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def source_names(self) -> list[str]:
        return [self.source] if self.layers is None else [self.source.format(i) for i in range(self.layers)]


@dataclasses.dataclass(frozen=True)
class _Layout:
    """`Rule.axes` resolved for one target shape (without the stacked axis)."""

    source_axes: tuple[tuple[str, ...], ...]
    target_axes: tuple[tuple[str, ...], ...]
    sizes: Mapping[str, int]

    def source_shape(self) -> Shape:
        return tuple(math.prod(self.sizes[name] for name in group) for group in self.source_axes)

    def to_target(self, array: np.ndarray) -> np.ndarray:
        return _rearrange(array, self.source_axes, self.target_axes, self.sizes)

    def to_source(self, array: np.ndarray) -> np.ndarray:
        return _rearrange(array, self.target_axes, self.source_axes, self.sizes)


def import_tensors(
    rules: Sequence[Rule],
    source: Mapping[str, SourceTensor],
    target: Any,
    *,
    origin: str,
    ignored: Iterable[str] = (),
) -> dict[str, Any]:
    """Fills our tree from a source's tensors; each is read once and written straight to its place.

    Args:
      rules: the table.
      source: tensors of the file by name.
      target: nested dictionaries of shapes and types (`jax.ShapeDtypeStruct`) that the result will have.
      origin: the file, for messages.
      ignored: regular expressions of source names (whole names) that no rule needs.

    Returns:
      Nested dictionaries of numpy arrays with the target's shapes and types.

    Raises:
      SparkError: tensors are missing, extra or misshapen; one message lists them all. Nothing was read then.
    """
    wanted = flatten(target)
    if unfilled := sorted(wanted.keys() - {rule.target for rule in rules}):
        raise LookupError(f"no rule fills {', '.join(unfilled)}")
    ignorable = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or r"(?!)")
    problems = []
    needed = source_shapes(rules, target)
    for name, shape in needed.items():
        if name not in source:
            problems.append(f"missing {name} {list(shape)}")
        elif source[name].shape != shape:
            problems.append(f"misshapen {name} {list(source[name].shape)}, expected {list(shape)}")
    for name, tensor in source.items():
        if name not in needed and not ignorable.fullmatch(name):
            problems.append(f"extra {name} {list(tensor.shape)}")
    if problems:
        raise SparkError(f"{origin}: {len(problems)} tensors do not fit: {'; '.join(problems)}")
    filled = {}
    for rule in rules:
        leaf = wanted[rule.target]
        layout = _layout(rule, leaf.shape)
        filled[rule.target] = values = np.empty(leaf.shape, leaf.dtype)
        for i, name in enumerate(rule.source_names()):
            place = values if rule.layers is None else values[i]
            place[...] = layout.to_target(source[name].read())
    return unflatten(filled)


def source_shapes(rules: Sequence[Rule], target: Any) -> dict[str, Shape]:
    """Names and shapes of the source tensors that fill a tree."""
    wanted = flatten(target)
    return {
        name: _layout(rule, wanted[rule.target].shape).source_shape() for rule in rules for name in rule.source_names()
    }


def export_tensors(rules: Sequence[Rule], tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The way back: tensors by source name from our tree (any arrays), in the source's shapes."""
    leaves = flatten(tree)
    tensors = {}
    for rule in rules:
        values = np.asarray(leaves[rule.target])
        layout = _layout(rule, values.shape)
        for name, part in zip(rule.source_names(), [values] if rule.layers is None else values, strict=True):
            tensors[name] = np.ascontiguousarray(layout.to_source(part))
    return tensors


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of a tree of dictionaries by their slash-separated paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _layout(rule: Rule, shape: Shape) -> _Layout:
    if rule.layers is not None:
        if shape[0] != rule.layers:
            raise LookupError(f"rule for {rule.target}: {rule.layers} layers, the tree has {shape[0]}")
        shape = shape[1:]
    text = rule.axes or "{0} -> {0}".format(" ".join(f"axis{i}" for i in range(len(shape))))
    source_axes, target_axes = (_parse(side) for side in text.split("->"))
    if len(target_axes) != len(shape):
        raise LookupError(f"rule for {rule.target}: {rule.axes!r} does not fit the shape {shape}")
    sizes = dict(rule.sizes)
    for group, size in zip(target_axes, shape, strict=True):
        unknown = [name for name in group if name not in sizes]
        if len(unknown) > 1:
            raise LookupError(f"rule for {rule.target}: sizes of {unknown} are not given")
        if unknown:
            sizes[unknown[0]] = size // math.prod(sizes[name] for name in group if name in sizes)
        if math.prod(sizes[name] for name in group) != size:
            raise LookupError(f"rule for {rule.target}: {rule.axes!r} does not divide the shape {shape}")
    return _Layout(source_axes, target_axes, sizes)


def _parse(side: str) -> tuple[tuple[str, ...], ...]:
    """ "(heads dim) 1 in" → (("heads", "dim"), (), ("in",))."""
    groups = re.findall(r"\(([^)]*)\)|(\S+)", side)
    return tuple(tuple(joined.split()) if joined else () if one == "1" else (one,) for joined, one in groups)


def _rearrange(array, before, after, sizes) -> np.ndarray:
    names = [name for group in before for name in group]
    order = [names.index(name) for group in after for name in group]
    array = array.reshape([sizes[name] for name in names]).transpose(order)
    return array.reshape([math.prod(sizes[name] for name in group) for group in after])
