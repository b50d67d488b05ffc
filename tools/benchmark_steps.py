"""Times training steps on an accelerator, several settings in one process: seconds, useful FLOPs, memory, kernels.

    python tools/benchmark_steps.py llm_0_5b --output steps.json
    python tools/benchmark_steps.py bicodec_16k --variant "dtype=bfloat16 data.batch_segments=32" --profile traces
    python tools/benchmark_steps.py llm_0_5b --variant "remat=full" --variant "remat=dots xla_gpu_autotune_level=0"

A variant is a list of overrides of the recipe; names that begin with `xla_` are options of the compiler. Without
variants those of `VARIANTS` are measured, the most telling first. Rows are packed from lengths like VoxBox's; the
codec's batches are noise. Weights are random: no file is read. Each variant is printed and written to `--output` when
it is done, so that a run that is cut off leaves what it has; with `--seconds` none is started later than that.

MFU counts useful FLOPs alone (docs/training/metrics.md). Planned memory is the compiler's: arguments, results and
temporaries; the peak beside it is what the device had in use at most since the program began. With `--profile` one
step of each variant is traced, and its kernels are listed by time and by the part of the model they belong to.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from kernel_times import Kernels, read_kernels

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.data import packing, tokens
from spark_jax.errors import SparkError, ends_with_a_line, one_line
from spark_jax.model_directory.directory import read_system
from spark_jax.performance import flops
from spark_jax.performance.hardware import GIB, peak_flops
from spark_jax.shared import files
from spark_jax.training.catalog import load_training, training_of
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.program import Program
from spark_jax.training.state import TrainState

# For one card of 80 GB, the most telling first.
VARIANTS = {
    "llm_0_5b": (
        "data.batch_rows=16 accumulate=2 attention=cudnn_packed remat=dots loss_chunk=8192",
        "data.batch_rows=16 accumulate=2 attention=cudnn remat=dots loss_chunk=8192",
        "data.batch_rows=16 accumulate=2 attention=cudnn_packed remat=none loss_chunk=8192",
        "data.batch_rows=8 accumulate=4 attention=cudnn remat=dots loss_chunk=2048",
        "data.batch_rows=16 accumulate=2 attention=cudnn_packed remat=dots loss_chunk=8192 "
        "xla_gpu_enable_triton_gemm=false",
        "data.batch_rows=32 accumulate=1 attention=cudnn_packed remat=dots loss_chunk=8192",
        "data.batch_rows=16 accumulate=2 attention=cudnn_packed remat=full loss_chunk=8192",
        "data.batch_rows=4 accumulate=8 attention=xla remat=dots loss_chunk=8192",
    ),
    "bicodec_16k": (
        "data.batch_segments=32 dtype=bfloat16",
        "data.batch_segments=32 dtype=float32",
        "data.batch_segments=64 dtype=bfloat16 remat=true",
    ),
}
ONE_DEVICE = ("mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1")
# Kernels by the part of the model that the name of their operation tells, the first that is found.
PARTS = {
    "llm": {
        "attention kernel": r"dot_product_attention|bkgts|btkgd",
        "norms": r"_norm|/norm",
        "attention": r"/attention/",
        "mlp": r"/mlp/",
        "head and loss": r"nd,vd|nv,|cond|reduce_max|sort|argsort",
        "embedding": r"embed|scatter",
        "saved for the gradient": r"dynamic_update|dynamic_slice",
    },
    "codec": {
        "spectral discriminators' convolutions": r"spectral_\d+.*conv_general",
        "spectral discriminators": r"spectral_\d+",
        "period discriminators": r"period_\d+",
        "wav2vec2": r"Wav2Vec2",
        "wave generator": r"wave_generator",
        "speaker encoder": r"speaker",
        "other parts of the codec": r"BiCodec",
        "spectra and losses": r"fft|mel|stft",
    },
}
BASE = 1_000_003  # random numbers that all weights are made of


def main(
    recipe: Annotated[str, typer.Argument(help="Recipe or YAML of a training.")],
    variant: Annotated[list[str] | None, typer.Option(help='Such as "remat=full xla_gpu_autotune_level=0".')] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value", help="Of all variants.")] = None,
    steps: Annotated[int, typer.Option(help="Of a round.", min=1)] = 3,
    rounds: Annotated[int, typer.Option(help="Of each variant, after one that does not count.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="After which no variant is started.")] = 600.0,
    profile: Annotated[Path | None, typer.Option(help="Folder for traces of one step of each variant.")] = None,
    top: Annotated[int, typer.Option(help="Kernels that are listed of a trace.")] = 25,
    output: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
) -> None:
    """Measures the variants of a recipe on the first device."""
    start, found = time.perf_counter(), []
    device = jax.devices()[0]
    print(f"{device.device_kind}, JAX {jax.__version__}, {recipe}; memory in GiB\n\n{HEAD}", flush=True)
    state: TrainState | None = None
    for number, text in enumerate(variant or VARIANTS.get(recipe, ("",))):
        if time.perf_counter() - start > seconds:
            print(f"left out after {seconds:g} s: {text}", flush=True)
            continue
        folder = None if profile is None else profile / str(number)
        try:
            result, state, kernels = measure(recipe, [*(overrides or []), *text.split()], state, steps, rounds, folder)
        except (SparkError, jax.errors.JaxRuntimeError, ValueError, NotImplementedError, RuntimeError) as error:
            result, state, kernels = {"error": one_line(error, 600)}, None, None
        found.append({"variant": text, "device": device.device_kind, "recipe": recipe} | result)
        print(row(found[-1]), flush=True)
        if kernels is not None:
            parts = PARTS["llm" if "tokens_per_second" in result else "codec"]
            found[-1]["parts"] = kernels.by_part(parts)
            found[-1]["kernels"] = [dataclasses.asdict(kernel) for kernel in kernels.kernels[:400]]
            print(f"\n{kernels.table(parts, top)}\n", flush=True)
        if output is not None:
            files.write_text(output, json.dumps(found, indent=1))
    if not any("step_seconds" in result for result in found):
        raise SystemExit(1)


HEAD = (
    "| variant | compile s | step s | slowest | a second | useful TFLOP/s | MFU | planned | peak | loss |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def row(result: Mapping[str, Any]) -> str:
    """Returns a variant's row of the table."""
    if "error" in result:
        return f"| {result['variant']} | {result['error']} |"
    rate = next(f"{result[name]:,.0f} {name.split('_')[0]}" for name in RATES.values() if name in result)
    mfu = "–" if result["mfu"] is None else f"{result['mfu']:.1%}"
    peak = "–" if result["peak_bytes"] is None else f"{result['peak_bytes'] / GIB:.1f}"
    return (
        f"| {result['variant']} | {result['compile_seconds']:.0f} | {result['step_seconds']:.4f} "
        f"| {result['slowest_step_seconds']:.4f} | {rate} | {result['useful_flops_per_second'] / 1e12:.1f} | {mfu} "
        f"| {result['planned_bytes'] / GIB:.1f} | {peak} | {result['loss']:.4f} |"
    )


RATES = {"tokens": "tokens_per_second", "audio_seconds": "audio_seconds_per_second"}


def measure(
    recipe: str,
    overrides: Sequence[str],
    state: TrainState | None,
    steps: int,
    rounds: int,
    profile: Path | None,
) -> tuple[dict[str, Any], TrainState, Kernels | None]:
    """Compiles and times one variant.

    Args:
      state: of the variant before; None: it is made anew.
      profile: folder for the trace of a step; None: none.

    Returns:
      The figures, the state after the steps, and the kernels of a trace.

    Raises:
      SparkError: the variant is no configuration.
      JaxRuntimeError: it does not fit the device.
    """
    pairs = (word.split("=", 1) for word in overrides if word.startswith("xla_"))
    options = {name: {"true": True, "false": False}.get(value, value) for name, value in pairs}
    config = load_training(recipe, [*ONE_DEVICE, *(word for word in overrides if not word.startswith("xla_"))])
    system = read_system(config.model)
    training = training_of(config)
    program = training.program(config, system, jax.devices()[:1])
    shapes = program.abstract_state()
    step = program.jit_step(jax.tree.map(lambda leaf: leaf.sharding, shapes))
    traced = step.trace(shapes, program.batch)
    start = time.perf_counter()
    compiled = traced.lower().compile(compiler_options=options or None)
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    if state is None:
        state = random_state(shapes)
    rng = np.random.default_rng(0)
    batches = [sharding.put_batch(program.mesh, draw(config, program, system, rng)) for _ in range(2)]
    times, metrics = [], {}
    for number in range(rounds + 1):
        start = time.perf_counter()
        for turn in range(steps):
            state, metrics = compiled(state, batches[turn % 2])
        metrics = jax.device_get(metrics)  # waits
        if number:
            times.append((time.perf_counter() - start) / steps)
    seconds = statistics.median(times)
    useful = useful_flops(config, system, traced, metrics)
    peak = peak_flops(jax.devices()[0])
    stats = jax.devices()[0].memory_stats() or {}
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    result = {
        "compile_seconds": compile_seconds,
        "step_seconds": seconds,
        "fastest_step_seconds": min(times),
        "slowest_step_seconds": max(times),
        "useful_flops": useful,
        "useful_flops_per_second": useful / seconds,
        "mfu": None if peak is None else useful / seconds / peak,
        "planned_bytes": memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": stats.get("peak_bytes_in_use"),
        **{name: float(metrics[rate]) / seconds for rate, name in RATES.items() if rate in metrics},
        **{name: float(value) for name, value in metrics.items() if np.ndim(value) == 0},
    }
    kernels = None
    if profile is not None:
        with jax.profiler.trace(profile):
            state, metrics = compiled(state, batches[0])
            jax.block_until_ready(metrics)
        try:
            kernels = read_kernels(profile, compiled.as_text())
        except (SparkError, KeyError, ValueError) as error:  # the times are worth more than the trace
            result["profile_error"] = repr(error)
    return result, state, kernels


def useful_flops(config: Any, system: SparkConfig, traced: Any, metrics: Mapping[str, Any]) -> float:
    """Returns the useful operations of the last step."""
    if isinstance(config, LLMTrainingConfig):
        return flops.llm_step_flops(
            system.llm, float(metrics["tokens"]), float(metrics["targets"]), float(metrics["attention_pairs"])
        )
    # A step without rematerialization does nothing twice, and is traced already.
    return training_of(config).step_flops(config, system) if config.remat else flops.count_flops(traced.jaxpr)


def random_state(shapes: TrainState) -> TrainState:
    """Draws a state on the host: compiling an initialization takes longer than copying all that it makes."""
    base = np.random.default_rng(0).standard_normal(BASE).astype(np.float32)

    def weights(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name in ("bias", "mean", "beta"):
            return np.zeros(leaf.shape, leaf.dtype)
        if leaf.ndim < 2 or name == "kernel_g":  # gains, and statistics that are no mean
            return np.full(leaf.shape, 0.5 if name == "kernel_g" else 1.0, leaf.dtype)
        stacked = leaf.ndim > 2 and "layers" in jax.tree_util.keystr(path)
        inputs = np.prod(leaf.shape[int(stacked) : -1]) if "embed" not in name else leaf.shape[-1]
        return (np.resize(base, leaf.shape) * np.float32(inputs**-0.5)).astype(leaf.dtype)

    def zeros(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.zeros(leaf.shape, leaf.dtype)

    made = jax.tree.map(zeros, shapes).replace(
        params=jax.tree_util.tree_map_with_path(weights, shapes.params),
        collections=jax.tree_util.tree_map_with_path(weights, shapes.collections),
    )
    return jax.tree.map(lambda leaf, shape: jax.device_put(leaf, shape.sharding), made, shapes)


def draw(config: Any, program: Program, system: SparkConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws a batch of the shapes of the real pipeline."""
    if isinstance(config, LLMTrainingConfig):
        return packed_rows(program.batch, system, rng)
    batch = {}
    for name, like in program.batch.items():
        if like.dtype.kind != "f":
            raise SparkError(f"batches with {name} are not measured: expected the codec's phases full or features")
        batch[name] = rng.normal(0, 0.1, like.shape).astype(like.dtype)
    return batch


@ends_with_a_line()
def packed_rows(
    shapes: Mapping[str, jax.ShapeDtypeStruct], system: SparkConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draws packed rows of random tokens, with lengths like VoxBox's and both tasks in turn."""
    rows, length = shapes["input_ids"].shape
    batch = {name: np.zeros(like.shape, like.dtype) for name, like in shapes.items()}
    speech = rng.lognormal(np.log(7.4) - 0.18, 0.6, rows * length // 128 + rows).clip(1, 28)
    prompts = 10 + np.ceil(4 * speech).astype(int) + system.bicodec.speaker_encoder.token_num
    lengths = np.minimum(prompts + (system.token_rate * speech).astype(int), length)
    packed = packing.pack(lengths, length)  # the longest first
    for row, chosen in enumerate(packed[number] for number in rng.permutation(len(packed))[:rows]):
        start = 0
        for segment, index in enumerate(chosen, 1):
            # Of every other sequence the completion says the voice, too.
            task, size = 1 + index % 2, int(lengths[index])
            prompt = min(prompts[index] - (task - 1) * system.bicodec.speaker_encoder.token_num, size - 2)
            ids, end = rng.integers(0, system.llm.vocab_size, size), start + size
            batch["input_ids"][row, start:end] = ids
            batch["targets"][row, start : end - 1] = ids[1:]
            batch["classes"][row, start + prompt : end - 1] = tokens.SEMANTIC
            batch["tasks"][row, start + prompt : end - 1] = task
            batch["positions"][row, start:end] = np.arange(size)
            batch["segment_ids"][row, start:end] = segment
            start = end
    return batch


if __name__ == "__main__":
    typer.run(main)
