"""Checks every annotation of the package, shapes included, while tests run."""

import dataclasses
from typing import Any

import jax
import jaxtyping

PACKAGE = "spark_jax"
TYPECHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int is a float, too


def install() -> None:
    """Has every function and dataclass of the package checked that is imported from now on."""
    jax.tree_util.register_dataclass = _register_dataclass
    jaxtyping.install_import_hook(PACKAGE, TYPECHECKER)


_original = jax.tree_util.register_dataclass


def _register_dataclass(cls: type, data_fields: Any = None, meta_fields: Any = None, **settings: Any) -> type:
    """Registers a dataclass as a pytree that JAX rebuilds without its `__init__`.

    JAX puts shardings, shapes and placeholders into trees where the annotations promise arrays. The fields are checked
    where the program makes the object, not where JAX rebuilds it.
    """
    if not cls.__module__.startswith(PACKAGE):
        return _original(cls, data_fields, meta_fields, **settings)

    def flatten_with_keys(instance: Any) -> tuple[list, tuple]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(instance, name)) for name in data_fields]
        return children, tuple(getattr(instance, name) for name in meta_fields)

    def flatten(instance: Any) -> tuple[list, tuple]:
        return [getattr(instance, name) for name in data_fields], tuple(getattr(instance, name) for name in meta_fields)

    def unflatten(meta: tuple, children: Any) -> Any:
        instance = object.__new__(cls)
        for name, value in (*zip(data_fields, children, strict=True), *zip(meta_fields, meta, strict=True)):
            object.__setattr__(instance, name, value)
        return instance

    assert not any(not field.init for field in dataclasses.fields(cls)), f"{cls}: has fields that only __init__ sets"
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
