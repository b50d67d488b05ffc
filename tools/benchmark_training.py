"""Step time of a training against the same step in PyTorch; prints a Markdown table.

    pip install "spark-jax[parity]"
    python tools/benchmark_training.py tiny_llm [--steps 10] [--rounds 5] [--set attention=xla]
    pip install einops einx
    python tools/benchmark_training.py tiny_bicodec --reference Spark-TTS

Both sides start from the same weights and train on the same batches: packed rows of random tokens, or random ids and
noise. The losses of the first steps are compared before anything is timed. tools/torch_training.py says what PyTorch
does. Rounds of the two alternate, so that what else the machine does meets both; the ratio is that of the medians.
"""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.data import tokens
from spark_jax.errors import SparkError, ends_with_a_line
from spark_jax.model_directory.directory import read_system
from spark_jax.training.catalog import load_training, training_of
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.program import Program

Batch = dict[str, np.ndarray]


@ends_with_a_line()
def main(
    config: Annotated[str, typer.Argument(help="Recipe or YAML of the language model, or of the codec's phase wave.")],
    reference: Annotated[
        Path | None, typer.Option(help="Checkout of the official repository (has sparktts/), for the codec.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of a round.", min=1)] = 10,
    rounds: Annotated[int, typer.Option(help="Rounds of each side.", min=1)] = 5,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value")] = None,
) -> None:
    """Times one training step here and in PyTorch."""
    run = load_training(config, overrides or [])
    compare(run, read_system(run.model), reference, steps, rounds)


def compare(
    run: LLMTrainingConfig | BiCodecTrainingConfig,
    system: SparkConfig,
    reference: Path | None,
    steps: int,
    rounds: int,
) -> None:
    """Measures one training's steps on both sides, alternating, and prints a table.

    Raises:
      SparkError: the losses of the first steps differ, or PyTorch's side cannot be made.
    """
    import torch_training

    if isinstance(run, LLMTrainingConfig):
        if run.dtype != "float32":
            raise SparkError(f"dtype is {run.dtype}, expected float32")
    elif run.adversarial:
        raise SparkError(f"adversarial_start is {run.adversarial_start}, expected null: PyTorch has no such step")
    elif reference is None:
        raise SparkError("--reference is missing: the codec's PyTorch modules are the official repository's")
    program = training_of(run).program(run, system)
    rng = np.random.default_rng(0)
    state, shardings = sharding.initialize(program.mesh, program.init)
    if isinstance(run, LLMTrainingConfig):
        theirs = torch_training.llm_step(run, system, state)
        batches = [packed_rows(run, system.llm.vocab_size, rng) for _ in range(4)]
    else:
        theirs = torch_training.codec_step(run, system, state, reference)
        batches = [ids_and_noise(program, system, rng) for _ in range(4)]
    jitted = program.jit_step(shardings)

    def ours(batch: Batch) -> float:
        nonlocal state
        state, metrics = jitted(state, sharding.put_batch(program.mesh, batch))
        return float(metrics["loss"])

    for batch in batches:  # compiles; and both do the same
        pair = ours(batch), theirs(batch)
        if abs(pair[0] - pair[1]) > 1e-4 * abs(pair[1]):
            raise SparkError(f"the losses differ, ours {pair[0]:.6f}, PyTorch's {pair[1]:.6f}: nothing to compare")
    report(alternate({"spark_jax": ours, "PyTorch": theirs}, batches, steps, rounds), steps)


def alternate(
    sides: dict[str, Callable[[Batch], float]], batches: list[Batch], steps: int, rounds: int
) -> dict[str, list[float]]:
    """Measures the seconds a step of each round of each side."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            start = time.perf_counter()
            for i in range(steps):
                step(batches[i % len(batches)])
            times[name].append((time.perf_counter() - start) / steps)
    return times


def report(times: dict[str, list[float]], steps: int) -> None:
    """Prints the times of both sides and their ratio."""
    middle = {name: statistics.median(values) for name, values in times.items()}
    print("| step of | median s | fastest s | slowest s |\n|---|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {middle[name]:.3f} | {min(values):.3f} | {max(values):.3f} |")
    ratio, rounds = middle["PyTorch"] / middle["spark_jax"], len(times["PyTorch"])
    print(f"\nPyTorch's time over ours: {ratio:.2f} ({rounds} rounds of {steps} steps)")


def packed_rows(run: LLMTrainingConfig, vocabulary: int, rng: np.random.Generator) -> Batch:
    """Draws a batch like data.tokens' ones: rows full of sequences of 60 to 200 tokens, the last two thirds targets."""
    shape = (run.data.batch_rows * run.accumulate, run.data.row_length)
    batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "targets", "positions", "segment_ids")}
    batch["classes"] = np.zeros(shape, np.int8)
    for row in range(shape[0]):
        start, segment = 0, 0
        while shape[1] - start >= 60:
            length, segment = min(int(rng.integers(60, 200)), shape[1] - start), segment + 1
            ids, end = rng.integers(0, vocabulary, length), start + length
            batch["input_ids"][row, start:end] = ids
            batch["targets"][row, start : end - 1] = ids[1:]
            batch["classes"][row, start + length // 3 : end - 1] = tokens.SEMANTIC
            batch["positions"][row, start:end] = np.arange(length)
            batch["segment_ids"][row, start:end] = segment
            start = end
    return batch


def ids_and_noise(program: Program, system: SparkConfig, rng: np.random.Generator) -> Batch:
    """Draws a batch of the codec's phase "wave" with nothing to learn in it."""
    levels = system.bicodec.speaker_encoder.fsq_levels
    codes = {"semantic_ids": system.bicodec.quantizer.codebook_size, "global_ids": math.prod(levels)}
    return {
        name: rng.integers(0, codes[name], x.shape, np.int32)
        if name in codes
        else rng.normal(0, 0.1, x.shape).astype(np.float32)
        for name, x in program.batch.items()
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    typer.run(main)
