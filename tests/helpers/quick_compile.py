"""Compiling large programs that a test runs a few times, in `make test-all` too."""

import functools
from collections.abc import Callable
from typing import Any

import jax

OPTIONS = {"xla_backend_optimization_level": 0}
# jax.jit without LLVM's optimization; also for `init`, which op by op takes longer still.
quick_jit = functools.partial(jax.jit, compiler_options=OPTIONS)


def quickly(jitted: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function of one set of shapes without LLVM's optimization: half the time for the codec's step."""
    compiled: list[Callable[..., Any]] = []

    def call(*arguments: Any) -> Any:
        if not compiled:
            compiled.append(jitted.lower(*arguments).compile(OPTIONS))
        return compiled[0](*arguments)

    return call
