"""Compiling large programs that a test runs a few times, in `make test-all` too."""

import functools
from collections.abc import Callable
from typing import Any

import jax

OPTIONS = {"xla_backend_optimization_level": 0}
# GPUs would run hundreds of convolutions in many ways each to choose the fastest; any is right.
ON_GPUS = {"xla_gpu_autotune_level": 0}
# jax.jit without LLVM's optimization; also for `init`, which op by op takes longer still.
quick_jit = functools.partial(jax.jit, compiler_options=OPTIONS)


def quickly(jitted: Callable[..., Any], platform: str = "cpu") -> Callable[..., Any]:
    """A jitted function of one set of shapes without LLVM's optimization: half the time for the codec's step."""
    options = OPTIONS if platform == "cpu" else ON_GPUS
    compiled: list[Callable[..., Any]] = []

    def call(*arguments: Any) -> Any:
        if not compiled:
            compiled.append(jitted.lower(*arguments).compile(options))
        return compiled[0](*arguments)

    return call
