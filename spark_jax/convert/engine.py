"""Converts weights by tables: a table for each model, and one engine that applies it in both directions.

A rule names a tensor of the official file, its place in our tree, and how the axes of the one become the axes of
the other. Axes are written as in `"(heads dim) in -> in heads dim"`, which reads both ways: the same table that
imports a tensor says how it is written back. Both ways are streams: of our tree's leaves one way, of the file's
tensors the other, and never more than one of them is held.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spark_jax.convert.formats.tensors import SourceTensor, is_finite, is_float
from spark_jax.errors import ManyFaultsError
from spark_jax.shared.pytree import flatten

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a conversion table.

    Attributes:
      source: name of the official tensor; with `layers`, `{}` stands for the layer's number.
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
        """Returns the names of the official tensors, one for each layer that the target stacks."""
        return [self.source] if self.layers is None else [self.source.format(i) for i in range(self.layers)]


@dataclasses.dataclass(frozen=True)
class Table:
    """How one model's official file and our tree correspond.

    Attributes:
      rules: the tensors that both have.
      ignored: regular expressions of official names (whole names) that we do not need.
      copies: names that a file may hold besides, each with the name of the tensor it must equal.
      aliases: (regular expression, replacement) that turn other spellings of a name into the official one.
      constants: official tensors that our tree does not keep, with the values that the way back writes.
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    aliases: Sequence[tuple[str, str]] = ()
    constants: Mapping[str, np.ndarray | np.generic] = dataclasses.field(default_factory=dict)


class Import:
    """Reads one official file as our tree.

    Args:
      table: the model's table.
      source: tensors of the file by name.
      target: nested dictionaries of shapes and types (`jax.ShapeDtypeStruct`) that the result will have.

    Attributes:
      faults: one line for each tensor that does not fit: missing, extra, misshapen, transposed, not numbers,
        truncated, all from the descriptions alone; `leaves` adds those whose values are not finite.
    """

    def __init__(self, table: Table, source: Mapping[str, SourceTensor], target: Any):
        self._table = table
        self._wanted = flatten(target)
        if unfilled := sorted(self._wanted.keys() - {rule.target for rule in table.rules}):
            raise LookupError(f"no rule fills {', '.join(unfilled)}")
        self.faults: list[str] = []
        self._source: dict[str, SourceTensor] = {}
        self._names: dict[str, str] = {}  # official name → the file's own
        for name, tensor in source.items():
            official = name
            for pattern, replacement in table.aliases:
                official = re.sub(pattern, replacement, official)
            if official in self._source:
                self.faults.append(f"{name} and {self._names[official]} name the same tensor")
            self._source[official], self._names[official] = tensor, name
        self._check(source_shapes(table.rules, target))

    def _check(self, needed: dict[str, Shape]) -> None:
        ignorable = re.compile("|".join(f"(?:{pattern})" for pattern in self._table.ignored) or r"(?!)")
        needed |= {name: needed[of] for name, of in self._table.copies.items() if name in self._source}
        for name, shape in needed.items():
            tensor = self._source.get(name)
            if tensor is None:
                self.faults.append(f"missing {name} {list(shape)}")
            elif fault := tensor.fault or _misfit(tensor, shape):
                self.faults.append(f"{self._names[name]} {fault}")
        for name, tensor in self._source.items():
            if name not in needed and (tensor.fault or not ignorable.fullmatch(name)):
                self.faults.append(
                    f"{self._names[name]} {tensor.fault}"
                    if tensor.fault
                    else f"extra {self._names[name]} {list(tensor.shape)}"
                )

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields path and values of each leaf of our tree, in the target's types; each tensor is read once.

        To be called where `faults` is empty; it is to be looked at again when the leaves are through.
        """
        for rule in self._table.rules:
            leaf = self._wanted[rule.target]
            layout = _layout(rule, leaf.shape)
            values = np.empty(leaf.shape, leaf.dtype)
            for i, name in enumerate(rule.source_names()):
                place = values[...] if rule.layers is None else values[i]
                with np.errstate(over="ignore", invalid="ignore"):  # told below, with the tensor's name
                    place[...] = layout.to_target(self._source[name].read())
                if not is_finite(place):
                    self.faults.append(f"{self._names[name]} holds values that are not finite as {leaf.dtype}")
            yield rule.target, values
            del place, values  # the next leaf's memory must not come on top
        for name, of in self._table.copies.items():
            if name in self._source and not np.array_equal(self._source[name].read(), self._source[of].read()):
                self.faults.append(f"{self._names[name]} differs from {self._names[of]}, which it has to equal")


class Export:
    """Writes our tree as an official file.

    Args:
      table: the model's table.
      target: nested dictionaries of our leaves' shapes (`jax.ShapeDtypeStruct`).
      dtype: type of the file's tensors.

    Attributes:
      specifications: shape and type of every tensor of the file.
      faults: after `tensors`, one line for each tensor whose values are not finite.
    """

    def __init__(self, table: Table, target: Any, dtype: np.dtype):
        self._table, self._dtype = table, dtype
        self.faults: list[str] = []
        shapes = source_shapes(table.rules, target)
        self.specifications = {name: (shape, dtype) for name, shape in shapes.items()} | {
            name: (value.shape, self._type(value)) for name, value in table.constants.items()
        }

    def _type(self, constant: np.ndarray | np.generic) -> np.dtype:
        """Counters stay integers."""
        return self._dtype if is_float(constant.dtype) else constant.dtype

    def tensors(self, leaves: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields name and values of each tensor of the file, from path and values of each leaf in any order."""
        rules = {rule.target: rule for rule in self._table.rules}
        for path, values in leaves:
            rule = rules[path]
            layout = _layout(rule, values.shape)
            for name, part in zip(rule.source_names(), [values] if rule.layers is None else values, strict=True):
                with np.errstate(over="ignore", invalid="ignore"):
                    tensor = np.ascontiguousarray(layout.to_source(part), self._dtype)
                if not is_finite(tensor):
                    self.faults.append(f"{name} holds values that are not finite as {self._dtype}")
                yield name, tensor
            del values, part, tensor
        for name, value in self._table.constants.items():
            yield name, value.astype(self._type(value))


def source_shapes(rules: Sequence[Rule], target: Any) -> dict[str, Shape]:
    """Returns names and shapes of the official tensors that fill a tree."""
    wanted = flatten(target)
    return {
        name: _layout(rule, wanted[rule.target].shape).source_shape() for rule in rules for name in rule.source_names()
    }


def raise_faults(faults: Mapping[str, Sequence[str]]) -> None:
    """Raises one error for all faults of all files, where there is one.

    Args:
      faults: by the file's name.

    Raises:
      ManyFaultsError: a file has a fault.
    """
    found = {f"{file}: {len(lines)} tensors do not fit": lines for file, lines in faults.items() if lines}
    if found:
        raise ManyFaultsError(found)


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


def _misfit(tensor: SourceTensor, expected: Shape) -> str:
    """What a tensor's shape and type have against it; "": nothing."""
    found = tensor.shape
    if found != expected:
        kind = "transposed" if sorted(found) == sorted(expected) else "misshapen"
        return f"is {kind}: {list(found)}, expected {list(expected)}"
    if not is_float(tensor.dtype):
        return f"holds {tensor.dtype}, expected floating-point numbers"
    return ""
