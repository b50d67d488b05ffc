"""Checks every annotation of the package, shapes included, while tests run."""

from collections.abc import Callable
from typing import Any

import beartype
import jax
import jaxtyping
import typer

PACKAGE = "spark_jax"

_CHECK = beartype.beartype(
    conf=beartype.BeartypeConf(
        is_pep484_tower=True,  # an integer is a float, too
        # Typer wants parameters annotated so, and passes its base class.
        hint_overrides=beartype.FrozenDict({typer.Context: typer.Context.__mro__[1]}),
    )
)
_register = jax.tree_util.register_dataclass


def install() -> None:
    """Has every function and dataclass of the package checked that is imported from now on."""
    jax.tree_util.register_dataclass = _register_dataclass
    jaxtyping.install_import_hook(PACKAGE, "helpers.checked_types.check")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The checker that jaxtyping wraps around functions; it checks one item of each list, chosen at random."""
    return _CHECK(function)


def _register_dataclass(cls: type, data_fields: Any = None, meta_fields: Any = None, **settings: Any) -> type:
    """Registers a dataclass as a pytree whose fields are checked where the program makes one of arrays.

    JAX rebuilds trees without `__init__` here, because it puts shapes and placeholders where the annotations promise
    arrays; and a program may make one of shardings, as `jax.jit` takes them.
    """
    if not cls.__module__.startswith(PACKAGE):
        return _register(cls, data_fields, meta_fields, **settings)
    plain, checked = cls.__init__, jaxtyping.jaxtyped(cls.__init__, typechecker=check)

    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        shardings = any(isinstance(value, jax.sharding.Sharding) for value in (*args, *kwargs.values()))
        (plain if shardings else checked)(self, *args, **kwargs)

    def flatten_with_keys(instance: Any) -> tuple[list, tuple]:
        children, meta = flatten(instance)
        return [
            (jax.tree_util.GetAttrKey(name), child) for name, child in zip(data_fields, children, strict=True)
        ], meta

    def flatten(instance: Any) -> tuple[list, tuple]:
        return [getattr(instance, name) for name in data_fields], tuple(getattr(instance, name) for name in meta_fields)

    def unflatten(meta: tuple, children: Any) -> Any:
        instance = object.__new__(cls)
        for name, value in zip((*data_fields, *meta_fields), (*children, *meta), strict=True):
            object.__setattr__(instance, name, value)
        return instance

    cls.__init__ = initialize
    cls.__no_type_check__ = True  # jaxtyping leaves the __init__ as it is
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
