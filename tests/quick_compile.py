"""Compiling large programs that a test runs a few times."""

from collections.abc import Callable
from typing import Any

OPTIONS = {"xla_backend_optimization_level": 0}


def quickly(jitted: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function of one set of shapes without LLVM's optimisation: half the time for the codec's step."""
    compiled: list[Callable[..., Any]] = []

    def call(*arguments: Any) -> Any:
        if not compiled:
            compiled.append(jitted.lower(*arguments).compile(OPTIONS))
        return compiled[0](*arguments)

    return call
