"""Compiles a training's real step for devices that are elsewhere, and measures the compiled program."""

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from spark_jax.config import SparkConfig
from spark_jax.errors import one_line
from spark_jax.model_directory.directory import read_system
from spark_jax.performance import flops, hlo
from spark_jax.performance.hardware import GIB
from spark_jax.shared import files
from spark_jax.training.catalog import training_of
from spark_jax.training.program import Program


@dataclasses.dataclass(frozen=True)
class Measured:
    """A program that was compiled; sizes in bytes a chip.

    `temporaries` is what a chip holds at most besides arguments and outputs; of a TPU's the compiler tells that peak,
    of a CPU's the sum of all buffers.
    """

    arguments: float
    outputs: float
    temporaries: float
    seconds: float  # that the compiler took
    text: str  # of the compiled program


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step that was compiled; sizes in bytes a chip as in `Measured`, operations over all chips."""

    program: Program
    system: SparkConfig
    arguments: float
    outputs: float
    temporaries: float
    moved: hlo.Traffic
    model_flops: float
    executed_flops: float
    seconds: float  # that the compiler took

    @property
    def memory(self) -> float:
        return self.arguments + self.outputs + self.temporaries


@dataclasses.dataclass(frozen=True)
class DoesNotFit:
    """A step that does not fit; `needed` bytes, as far as the compiler says."""

    message: str
    needed: float


def compile_step(
    config: Any, devices: Sequence[Any], limit: float, effort: float = 0.0, save_hlo: Path | None = None
) -> Plan | DoesNotFit:
    """Returns the training's step compiled for the devices, or why it does not fit; no array is made.

    Args:
      limit: bytes of a chip's memory.
      effort: of the TPU compiler to make the program fast, 0 (the usual) to −1.
      save_hlo: file for the text of the compiled program.

    Raises:
      SparkError: the configuration does not fit the mesh, whatever the memory; or the file cannot be written.
      JaxRuntimeError: the compiler failed for another reason than memory.
    """
    system = read_system(config.model)
    training = training_of(config)
    program = training.program(config, system, devices)
    state = program.abstract_state()
    step = program.jit_step(jax.tree.map(lambda leaf: leaf.sharding, state))
    traced = step.trace(state, program.batch)
    measured = compile_traced(traced, devices[0].platform, effort)
    if isinstance(measured, DoesNotFit):
        return measured
    if save_hlo is not None:
        files.write_text(save_hlo, measured.text)
    plan = Plan(
        program=program,
        system=system,
        arguments=measured.arguments,
        outputs=measured.outputs,
        temporaries=measured.temporaries,
        moved=hlo.traffic(measured.text),
        model_flops=training.step_flops(config, system),
        executed_flops=flops.count_flops(traced.jaxpr),
        seconds=measured.seconds,
    )
    if plan.memory > limit:
        return DoesNotFit(f"{plan.memory / GIB:.2f} GiB a chip, of {limit / GIB:.2f}", plan.memory)
    return plan


def compile_traced(traced: Any, platform: str, effort: float = 0.0) -> Measured | DoesNotFit:
    """Returns a traced program compiled, or why a chip's memory does not hold it.

    Args:
      traced: the program.
      platform: of the devices that it is traced for.
      effort: see `compile_step`.

    Raises:
      JaxRuntimeError: the compiler failed for another reason than memory.
    """
    options = {"exec_time_optimization_effort": effort} if effort and platform == "tpu" else None
    start = time.perf_counter()
    try:
        compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return does_not_fit(str(error))
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.peak_memory_in_bytes if platform == "tpu" else 0
    temporaries = peak - arguments - outputs if peak else memory.temp_size_in_bytes
    return Measured(arguments, outputs, temporaries, seconds, compiled.as_text())


def does_not_fit(message: str) -> DoesNotFit:
    """Returns what the compiler says of a program that is too large: the first line, and the size in it."""
    text = one_line(message)
    text = text[text.find("Ran out of memory") :] if "Ran out of memory" in text else text
    sizes = re.findall(r"([\d.]+)([KMGT])i?B?\b", text)
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    needed = float(sizes[0][0]) * units[sizes[0][1]] if sizes else float("inf")
    return DoesNotFit(text[:240], needed)


def failure(error: jax.errors.JaxRuntimeError) -> str:
    """Returns what the compiler says where it failed for another reason than memory."""
    return f"the compiler failed: {one_line(error, 1000)}"
