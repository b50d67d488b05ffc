"""What a training needs on other machines: compiles its real step for them, here, and says whether it fits.

    pip install -e ".[plan]"     # the TPU compiler; no TPU is needed
    spark-jax plan configs/llm_0_5b.yaml --topology v5e:4x4 --topology v5p:8x8x8 --hours-of-audio 100000
    spark-jax plan configs/tiny_llm.yaml --cpu-devices 8

For each topology: memory of a chip, collectives, FLOPs, the shortest time that a step can take (roofline), and with
--hours-of-audio or --tokens the time for a corpus at an assumed utilization. Exit code 1: it does not fit; then the
nearest setting that does is searched for. Exit code 2: nothing can be said, and why.
"""

import argparse
import dataclasses
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError, one_line
from spark_jax.performance import flops, hlo
from spark_jax.performance.hardware import GIB, Accelerator, accelerator
from spark_jax.shared.config_files import load_config
from spark_jax.training.catalog import load_training, training_of
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.program import Program

# An hour of speech in the language model's tokens: 50 semantic ones a second and about 4 of text; and for each
# utterance 32 global ones and some 10 of its frame.
TOKENS_A_SECOND, TOKENS_AN_UTTERANCE = 54, 42
# What takes less memory for more work, the least costly first; XLA's own message says what is missing.
REMAT = ("none", "dots", "attention", "full")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step that was compiled; sizes in bytes a chip, operations over all chips.

    `temporaries` is what a chip holds at most besides arguments and outputs; of a TPU's the compiler tells that peak,
    of a CPU's the sum of all buffers.
    """

    program: Program
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


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Shortest seconds a step by each resource of a chip, if nothing else took time."""

    compute: float
    memory: float
    links: float

    @property
    def bound(self) -> str:
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.links)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        if not -1 <= arguments.effort <= 0:
            raise SparkError(f"--effort {arguments.effort}: expected -1 to 0")
        fits = True
        for name in arguments.topology or [None]:
            devices = topology_devices(name) if name else cpu_devices(arguments.cpu_devices)
            fits &= report(arguments, name or f"{len(devices)} CPU devices", devices)
        return 0 if fits else 1
    except SparkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        where = name or f"{arguments.cpu_devices} CPU devices"
        print(f"error: {arguments.config} on {where}: {failure(error)}", file=sys.stderr)
        return 2


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a file of train/llm.py or train/bicodec.py")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", action="append", metavar="v5e:4x4", help="TPU chips; several are planned in turn")
    where.add_argument("--cpu-devices", type=int, metavar="N", help="as many CPU devices, without the TPU compiler")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="overrides the file")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of a chip; default: what the chip has")
    parser.add_argument("--tries", type=int, default=8, metavar="N", help="settings to compile in search of a fit")
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed model FLOPs utilization (default 0.4)")
    parser.add_argument(
        "--effort",
        type=float,
        default=0.0,
        metavar="E",
        help="of the TPU compiler, from 0 (what a run has) to -1: compiles several times faster, in a quarter of the "
        "memory; a chip's traffic is then overstated, its memory a few percent off",
    )
    parser.add_argument("--save-hlo", metavar="FILE", help="the compiled program's text, to look into")
    corpus = parser.add_mutually_exclusive_group()
    corpus.add_argument("--hours-of-audio", type=float, metavar="H", help="of a corpus, read once")
    corpus.add_argument("--tokens", type=float, metavar="N", help="of a corpus of the language model, read once")
    parser.add_argument("--utterance-seconds", type=float, default=8.0, metavar="S", help="mean, for --hours-of-audio")
    return parser.parse_args(argv)


def topology_devices(name: str) -> list[Any]:
    """Devices that can be compiled for and nothing else.

    Raises:
      SparkError: no TPU compiler is installed, or it does not know the topology.
    """
    if not re.fullmatch(r"[a-z]+\d+\w*:\d+(x\d+)+", name):
        raise SparkError(f"--topology {name}: expected a TPU and its chips, such as v5e:4x4 or v5p:4x4x8")
    # The compiler looks for the TPU it would run on, and for others who use it; any answer will do.
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_MIN_LOG_LEVEL": "3",
    }
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    if jax.config.jax_platforms != "cpu":
        jax.config.update("jax_platforms", "cpu")
    # The two cores of these chips are one device, as they are to JAX on the machines; to the compiler they can be two.
    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # several kinds, by what is missing
        reason = one_line(error)
        if "not installed" in reason or "libtpu.so" in reason:
            raise SparkError('the TPU compiler is missing: pip install -e ".[plan]"') from error
        raise SparkError(f"--topology {name}: {reason[:300]}") from error


def cpu_devices(count: int) -> list[Any]:
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # there are devices already
    if not 0 < count <= len(jax.devices()):
        raise SparkError(f"--cpu-devices {count}: expected 1 to {len(jax.devices())}")
    return jax.devices()[:count]


def report(arguments: argparse.Namespace, where: str, devices: Sequence[Any]) -> bool:
    """Prints the plan for one topology; False: it does not fit."""
    overrides = list(arguments.set)
    config = load_training(arguments.config, overrides)
    chip = accelerator(devices[0].device_kind)
    limit = arguments.memory * GIB if arguments.memory else (chip.memory if chip else float("inf"))
    print(f"{arguments.config}{''.join(f' --set {o}' for o in overrides)} on {where} ({len(devices)} devices)")
    result = compile_step(config, devices, limit, arguments.effort, arguments.save_hlo)
    if isinstance(result, Plan):
        for line in describe(result, config, chip, limit, arguments):
            print(f"  {line}", flush=True)
        return True
    print(f"  does not fit  {result.message}", flush=True)
    found = search(arguments, overrides, devices, limit, result)
    if found is None:
        print(f"  no setting found in {arguments.tries} tries", flush=True)
        return False
    changes, plan = found
    print(f"  this does     {' '.join(f'--set {change}' for change in changes)}", flush=True)
    for line in describe(plan, load_training(arguments.config, overrides + changes), chip, limit, arguments):
        print(f"  {line}", flush=True)
    return False


def compile_step(
    config: Any, devices: Sequence[Any], limit: float, effort: float = 0.0, save_hlo: str | None = None
) -> Plan | DoesNotFit:
    """Compiles the training's step for the devices; no array is made.

    Args:
      limit: bytes of a chip's memory.
      effort: of the TPU compiler to make the program fast, 0 (the usual) to −1.
      save_hlo: file for the text of the compiled program.

    Raises:
      SparkError: the configuration does not fit the mesh, whatever the memory.
      JaxRuntimeError: the compiler failed for another reason than memory.
    """
    system = load_config(SparkConfig, config.model)
    program = training_of(config).program(config, system, devices)
    state = program.abstract_state()
    step = program.jit_step(jax.tree.map(lambda leaf: leaf.sharding, state))
    traced = step.trace(state, program.batch)
    options = {"exec_time_optimization_effort": effort} if effort and devices[0].platform == "tpu" else None
    start = time.perf_counter()
    try:
        compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return does_not_fit(str(error))
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if save_hlo is not None:
        Path(save_hlo).write_text(text)
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.peak_memory_in_bytes if devices[0].platform == "tpu" else 0
    plan = Plan(
        program=program,
        arguments=arguments,
        outputs=outputs,
        temporaries=peak - arguments - outputs if peak else memory.temp_size_in_bytes,
        moved=hlo.traffic(text),
        model_flops=model_flops(config, system),
        executed_flops=flops.count_flops(traced.jaxpr),
        seconds=seconds,
    )
    if plan.memory > limit:
        return DoesNotFit(f"{plan.memory / GIB:.2f} GiB a chip, of {limit / GIB:.2f}", plan.memory)
    return plan


def does_not_fit(message: str) -> DoesNotFit:
    """What the compiler says of a program that is too large: the first line, and the size in it."""
    text = " ".join(message.split())
    text = text[text.find("Ran out of memory") :] if "Ran out of memory" in text else text
    sizes = re.findall(r"([\d.]+)([KMGT])i?B?\b", text)
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    needed = float(sizes[0][0]) * units[sizes[0][1]] if sizes else float("inf")
    return DoesNotFit(text[:240], needed)


def failure(error: jax.errors.JaxRuntimeError) -> str:
    return f"the compiler failed: {one_line(error, 1000)}"


def model_flops(config: Any, system: SparkConfig) -> float:
    """Of a step; rows of tokens count as one sequence each, all of them targets (several shorter ones take less)."""
    return training_of(config).step_flops(config, system)


def search(
    arguments: argparse.Namespace, overrides: list[str], devices: Sequence[Any], limit: float, refused: DoesNotFit
) -> tuple[list[str], Plan] | None:
    """The first setting that fits on the way down: of each round the change that saves most is kept."""
    changes: list[str] = []
    tries = 0
    while True:
        best: tuple[float, list[str]] = (refused.needed, [])
        for change in neighbors(load_training(arguments.config, overrides + changes)):
            if tries == arguments.tries:
                return None
            trial = changes + change
            try:
                trained = load_training(arguments.config, overrides + trial)
                result = compile_step(trained, devices, limit, arguments.effort)
            except SparkError:
                continue  # sizes that do not divide
            except jax.errors.JaxRuntimeError as error:  # what was asked for does not fit all the same
                result = DoesNotFit(failure(error), float("inf"))
            tries += 1
            if isinstance(result, Plan):
                return _last_of_each(trial), result
            print(f"  neither does  {' '.join(trial)}: {result.message}", flush=True)
            best = min(best, (result.needed, change))
        if not best[1]:
            return None
        changes = changes + best[1]
        refused = DoesNotFit(refused.message, best[0])


def neighbors(config: Any) -> list[list[str]]:
    """Settings one change away that take less memory, those that cost least first."""
    found = [[f"mesh.fsdp={2 * config.mesh.fsdp}"]]
    if config.mesh.data > 1:
        found = [[f"mesh.data={config.mesh.data // 2}", *found[0]]]
    if isinstance(config, BiCodecTrainingConfig):
        # Its batch cannot be accumulated: discriminators, batch statistics and code usage are of the whole batch.
        found += [] if config.remat else [["remat=true"]]
        return [*found, [f"data.batch_segments={config.data.batch_segments // 2}"]]
    found += [[f"remat={policy}"] for policy in REMAT[REMAT.index(config.remat) + 1 :]]
    found += [[f"accumulate={2 * config.accumulate}", f"data.batch_rows={config.data.batch_rows // 2}"]]
    if config.loss_chunk >= 512:
        found += [[f"loss_chunk={config.loss_chunk // 2}"]]
    return found


def roofline(plan: Plan, chip: Accelerator) -> Roofline:
    """Each resource at its peak; collectives as rings along one axis of the interconnect."""
    return Roofline(
        compute=plan.executed_flops / plan.program.mesh.size / chip.flops,
        memory=plan.moved.memory_bytes / chip.memory_bandwidth,
        links=plan.moved.link_bytes / (chip.link_bandwidth or float("inf")),
    )


def describe(
    plan: Plan, config: Any, chip: Accelerator | None, limit: float, arguments: argparse.Namespace
) -> list[str]:
    """The lines of a plan."""
    mesh, moved = dict(plan.program.mesh.shape), plan.moved
    chips = plan.program.mesh.size
    lines = [
        f"mesh          {', '.join(f'{name} {size}' for name, size in mesh.items())}; {batch_text(config)}; compiled "
        f"in {plan.seconds:.0f} s",
        f"memory a chip arguments {plan.arguments / GIB:.2f} + outputs {plan.outputs / GIB:.2f} + temporaries "
        f"{plan.temporaries / GIB:.2f} = {plan.memory / GIB:.2f} GiB"
        + (f" of {limit / GIB:.1f}: fits" if limit < float("inf") else ""),
    ]
    for kind, collective in sorted(moved.collectives.items(), key=lambda item: -item[1].link_bytes):
        lines.append(
            f"collectives   {kind}: {collective.count:,} of {gigabytes(collective.operand_bytes)} in all, "
            f"{gigabytes(collective.link_bytes)} received a chip and step"
        )
    if moved.unknown_loops:
        lines.append(f"              ({moved.unknown_loops} loops of unknown length count as one turn)")
    lines.append(
        f"FLOPs a step  model {plan.model_flops:.3e}, executed {plan.executed_flops:.3e}; a chip reads and writes "
        f"{gigabytes(moved.memory_bytes)}: {plan.executed_flops / chips / moved.memory_bytes:.0f} FLOPs a byte"
    )
    if chip is None:
        return lines
    roof = roofline(plan, chip)
    peak = chips * chip.flops
    lines.append(
        f"roofline      compute {roof.compute:.4f} s, memory {roof.memory:.4f} s, links {roof.links:.4f} s: bound by "
        f"{roof.bound}; at best {roof.step:.4f} s a step, MFU {plan.model_flops / peak / roof.step:.2f}"
    )
    seconds = plan.model_flops / peak / arguments.mfu
    steps, text = corpus_steps(config, arguments)
    lines.append(f"time          {text}: {steps * seconds / 3600:,.1f} h at an MFU of {arguments.mfu}")
    return lines


def batch_text(config: Any) -> str:
    if isinstance(config, BiCodecTrainingConfig):
        return f"{config.data.batch_segments} segments of {config.data.segment_seconds} s a step"
    return f"{config.accumulate} × {config.data.batch_rows} rows of {config.data.row_length:,} tokens a step"


def corpus_steps(config: Any, arguments: argparse.Namespace) -> tuple[float, str]:
    """Steps to read the corpus once (without one, those of the run), and what that is."""
    hours = arguments.hours_of_audio
    if isinstance(config, BiCodecTrainingConfig):
        if hours is None:
            return config.loop.steps, f"{config.loop.steps:,} steps"
        steps = hours * 3600 / (config.data.batch_segments * config.data.segment_seconds)
        return steps, f"{hours:,.0f} h of audio are {steps:,.0f} steps"
    tokens = arguments.tokens
    if hours is not None:
        weight = config.data.tts_weight + config.data.controllable_weight
        tokens = hours * 3600 * weight * (TOKENS_A_SECOND + TOKENS_AN_UTTERANCE / arguments.utterance_seconds)
    if tokens is None:
        return config.loop.steps, f"{config.loop.steps:,} steps"
    steps = tokens / (config.accumulate * config.data.batch_rows * config.data.row_length)
    return steps, f"{tokens / 1e9:,.2f} billion tokens are {steps:,.0f} steps"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.3f} MB"


def _last_of_each(changes: Sequence[str]) -> list[str]:
    return list({change.partition("=")[0]: change for change in changes}.values())


if __name__ == "__main__":
    sys.exit(main())
