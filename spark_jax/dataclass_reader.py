"""Frozen dataclasses from plain data: every key is a field, and every value has its field's type.

Numbers may be those of numpy and others; the dataclasses hold Python's, which JSON, hashes and messages know.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import dacite
import numpy as np

from spark_jax.errors import SparkError, one_line

T = TypeVar("T")


class _PlainArguments(type):
    """Constructs with Python's numbers, so that a field holds what its annotation says."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        plain = {name: _plain_argument(value) for name, value in named.items()}
        return super().__call__(*map(_plain_argument, arguments), **plain)


class PlainNumbers(metaclass=_PlainArguments):
    """A dataclass whose numbers become Python's when it is constructed, alone and in tuples; arrays become tuples."""


def _plain_argument(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim:
        return tuple(value.tolist())
    return plain_data(value) if isinstance(value, tuple) else plain_number(value)


def plain_number(value: Any) -> Any:
    """Returns a scalar of numpy, or an array without axes (JAX's and others', too), as Python's; else what it is."""
    scalar = isinstance(value, np.generic) or (getattr(value, "shape", None) == () and hasattr(value, "item"))
    return value.item() if scalar else value


def plain_data(value: Any) -> Any:
    """Returns nested mappings, lists and tuples with `plain_number` in all of them; arrays become lists."""
    if isinstance(value, Mapping):
        return {key: plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain_data(item) for item in value]
        unchanged = all(item is before for item, before in zip(items, value, strict=True))
        return value if unchanged else type(value)(items) if type(value) in (list, tuple) else items
    return value.tolist() if isinstance(value, np.ndarray) else plain_number(value)


def read_dataclass(cls: type[T], mapping: Any, source: str) -> T:
    """Makes a dataclass from nested plain data (YAML, JSON), in which lists stand for tuples.

    Args:
      cls: the dataclass.
      mapping: the data.
      source: origin of the data for messages, such as a file name.

    Raises:
      SparkError: the data is no mapping, a key is unknown or missing, a value has another type than its field, or the
        class itself refuses its values.
    """
    if not isinstance(mapping, Mapping):
        raise SparkError(f"{source}: expected a mapping of {cls.__name__} fields, found {type(mapping).__name__}")
    mapping = plain_data(mapping)
    _check_lists(cls, mapping, source)
    settings = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _as_float})
    try:
        instance = dacite.from_dict(cls, dict(mapping), settings)
    except (dacite.DaciteError, TypeError, SparkError) as error:  # the last two from classes that look at their values
        raise SparkError(f"{source}: {one_line(error)}") from error
    _refuse_booleans(instance, source)
    return instance


def _check_lists(cls: type, mapping: Mapping[str, Any], source: str) -> None:
    """Checks that tuples come from lists: dacite converts anything, and its error does not name the field."""
    for field in dataclasses.fields(cls):
        value = mapping.get(field.name)
        kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        nested = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if nested and isinstance(value, Mapping):
            _check_lists(nested[0], value, f"{source}: {field.name}")
            continue
        plain = tuple(kind for kind in kinds if typing.get_origin(kind) is None)
        if field.name not in mapping or isinstance(value, (list, tuple, *plain)):
            continue
        if tuple in map(typing.get_origin, kinds):
            raise SparkError(f"{source}: {field.name} is {value!r}, expected a list")


def _refuse_booleans(config: Any, source: str) -> None:
    """Refuses booleans as numbers: Python counts True as one, and so does dacite."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _refuse_booleans(value, f"{source}: {field.name}")
        elif "bool" not in str(field.type) and bool in map(type, value if type(value) is tuple else (value,)):
            raise SparkError(f"{source}: {field.name} is {value!r}, expected a number")


def _as_float(value: Any) -> Any:
    """Converts YAML's 10 (an integer) and 1e-4 (a string, for want of a dot) to floats in fields of floats."""
    if isinstance(value, bool):
        return value  # left for the type check, which names the field
    if isinstance(value, int):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
