"""Says what the speech engine needs on other machines, how fast it can be at best, and how many slots fit."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from spark_jax import sharding
from spark_jax.config import RELEASE, SparkConfig
from spark_jax.errors import SparkError
from spark_jax.inference.engine import EngineSettings
from spark_jax.model_directory.directory import read_system
from spark_jax.performance import flops, hlo
from spark_jax.performance.hardware import GIB, Accelerator, accelerator
from spark_jax.planning.compile import DoesNotFit, Measured, compile_traced, failure
from spark_jax.planning.engine_programs import AbstractEngine, EngineProgram, chip_bytes
from spark_jax.shared import files

SIZES = {"0.5b": RELEASE}
SLOTS_A_CHIP = 256


@dataclasses.dataclass(frozen=True)
class InferenceQuestion:
    """What is planned.

    Attributes:
      model: a model directory, the name or file of a system's sizes, or a key of `SIZES`; no weights are read.
      slots: of the engine, over all chips; None: `SLOTS_A_CHIP` on each.
      window: places of each slot that a decode step reads.
      capacity: tokens that a slot has room for; None: the engine's own.
      block: decode steps between two refills.
      dtype: float32 or bfloat16.
      tensor: chips that divide the language model; the others divide the slots.
      utterance_seconds, prompt_tokens: the mean utterance, and what its prompt is padded to.
      memory: of a chip in GiB; None: what the chip has.
      tries: numbers of slots to compile in search of the largest that fits; 0: no search.
      effort: of the TPU compiler, see `compile_step`.
      vocoder_effort: the same for the vocoder, whose many convolutions take it ten times as long.
      save_hlo: file for the text of the decode block.
    """

    model: str
    slots: int | None = None
    window: int = 1024
    capacity: int | None = None
    block: int = 8
    dtype: str = "bfloat16"
    tensor: int = 1
    utterance_seconds: float = 8.0
    prompt_tokens: int = 128
    memory: float | None = None
    tries: int = 4
    effort: float = 0.0
    vocoder_effort: float = -1.0
    save_hlo: Path | None = None

    def system(self) -> SparkConfig:
        """Returns the model's sizes.

        Raises:
          SparkError: there is no such model.
        """
        return SIZES.get(self.model.lower()) or read_system(self.model)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program needs of a chip.

    Attributes:
      memory: bytes beside what lies there all the time; infinite: it does not fit.
      audio: seconds for a second of speech, at best; None: the chip's figures are not known.
    """

    memory: float
    audio: float | None = None


def plan_inference(question: InferenceQuestion, where: str, devices: Sequence[Any]) -> bool:
    """Prints the plan of the speech engine for the devices.

    Args:
      question: what is planned.
      where: the devices in words.
      devices: the chips of one machine.

    Returns:
      Whether it fits.

    Raises:
      SparkError: the settings do not fit the model or devices, or the compiler fails for another reason than memory.
    """
    plan = _Plan(question, where, devices)
    engine = plan.engine(question.slots or SLOTS_A_CHIP * (len(devices) // question.tensor))
    print(f"{question.model} on {where} ({len(devices)} devices), {question.dtype}", flush=True)
    costs = {"language model": plan.decode(engine), "prompts": plan.prefill(engine), "vocoder": plan.vocoder(engine)}
    resident, limit = engine.resident, plan.limit
    more = max(cost.memory for cost in costs.values())
    fits = resident + more <= limit
    slots, verdict = chip_bytes(engine.state), "" if limit == float("inf") else f" of {limit / GIB:.1f}"
    print(
        f"  memory a chip weights {(resident - slots) / GIB:.2f} + slots {slots / GIB:.2f} + temporaries "
        f"{more / GIB:.2f} = {(resident + more) / GIB:.2f} GiB{verdict}: {'fits' if fits else 'does not fit'}",
        flush=True,
    )
    if limit < float("inf") and question.tries:
        most = plan.most_slots(engine, costs["language model"].memory)
        print(f"  slots         {f'{most:,} fit' if most else 'none were found that fit'}", flush=True)
    times = {name: cost.audio for name, cost in costs.items() if cost.audio}
    if len(times) == len(costs):
        alone = ", ".join(f"{name} {1 / time:,.0f}" for name, time in times.items())
        print(
            f"  at best       {1 / sum(times.values()):,.0f} audio-seconds a second a chip; alone: {alone} (utterances "
            f"of {question.utterance_seconds:g} s, prompts of {question.prompt_tokens} tokens)",
            flush=True,
        )
    return fits


class _Plan:
    """Compiles and describes the programs of one question on one kind of devices."""

    def __init__(self, question: InferenceQuestion, where: str, devices: Sequence[Any]):
        self.question, self._where = question, where
        self.config = question.system()
        self.chip: Accelerator | None = accelerator(devices[0].device_kind)
        self.limit = question.memory * GIB if question.memory else (self.chip.memory if self.chip else float("inf"))
        self._platform = devices[0].platform
        self._mesh = sharding.make_mesh(tensor=question.tensor, devices=devices)

    def engine(self, slots: int) -> AbstractEngine:
        """Returns an engine of so many slots."""
        settings = EngineSettings(slots=slots, block=self.question.block, capacity=self.question.capacity)
        return AbstractEngine(self.config, settings, self.question.dtype, self._mesh)

    def decode(self, engine: AbstractEngine) -> Cost:
        """Describes a block of decode steps."""
        question, slots = self.question, engine.settings.slots
        program = engine.decode_block(question.window)
        measured, _ = self._compile(program)
        if isinstance(measured, DoesNotFit):
            return _refuse(program, measured)
        if question.save_hlo is not None:
            files.write_text(question.save_hlo, measured.text)
        head = dataclasses.replace(self.config.llm, vocab_size=engine.head.output.shape[0])
        operations = flops.llm_flops(head, slots, slots, slots * question.window) / self._mesh.size
        moved, ideal = hlo.traffic(measured.text).memory_bytes / question.block, engine.ideal_bytes(question.window)
        _tell(
            program,
            measured,
            f"a step moves {moved / 1e6:,.0f} MB a chip, {moved / ideal:.2f} × the {ideal / 1e6:,.0f} MB",
        )
        print("                of the weights once and the window once; copies of the cache: ", end="")
        print("; ".join(cache_copies(engine, question.window, measured.text)) or "none", flush=True)
        seconds = self._at_best("a step at best", operations, moved)
        return _cost(measured, seconds and seconds * self.config.token_rate * self._mesh.size / slots)

    def prefill(self, engine: AbstractEngine) -> Cost:
        """Describes the reading of prompts."""
        program = engine.prefill(self.question.prompt_tokens)
        measured, _ = self._compile(program)
        if isinstance(measured, DoesNotFit):
            return _refuse(program, measured)
        rows, time = program.arguments[-1].ids.shape
        operations = flops.llm_flops(self.config.llm, rows * time, rows, rows * time * time) / self._mesh.size
        moved = hlo.traffic(measured.text).memory_bytes
        _tell(program, measured, f"moves {moved / 1e6:,.0f} MB a chip")
        seconds = self._at_best("at best", operations, moved)
        return _cost(measured, seconds and seconds * self._mesh.size / rows / self.question.utterance_seconds)

    def vocoder(self, engine: AbstractEngine) -> Cost:
        """Describes the vocoder, of speech of the mean length."""
        spoken = max(1, round(self.question.utterance_seconds * self.config.token_rate))
        program, rows = engine.vocoder(spoken)
        measured, operations = self._compile(program)
        if isinstance(measured, DoesNotFit):
            return _refuse(program, measured)
        audio = rows * spoken / self.config.token_rate / self._mesh.size
        # In float32 a product is six of bfloat16 ("highest").
        operations *= (6 if self.question.dtype == "float32" else 1) / self._mesh.size
        moved = hlo.traffic(measured.text).memory_bytes
        _tell(
            program,
            measured,
            f"a second of audio moves {moved / audio / 1e6:,.0f} MB, {operations / audio / 1e9:,.1f} GFLOP",
        )
        seconds = self._at_best("at best", operations, moved)
        return _cost(measured, seconds and seconds / audio)

    def most_slots(self, engine: AbstractEngine, temporaries: float) -> int | None:
        """Returns how many slots fit; None: none were found. The decode block is compiled with this number.

        Args:
          engine: with some number of slots.
          temporaries: bytes of its decode block.
        """
        slots, grain = chip_bytes(engine.state), 8 * engine.shards
        each = (slots + (temporaries if temporaries < float("inf") else 0.0)) / engine.settings.slots
        count = int((self.limit - engine.resident + slots) / each) // grain * grain
        for _ in range(self.question.tries):
            if count < grain:
                break
            trial = self.engine(count)
            measured, _ = self._compile(trial.decode_block(self.question.window))
            if isinstance(measured, Measured) and trial.resident + _cost(measured).memory <= self.limit:
                return count
            count = min(count - grain, count * 15 // 16 // grain * grain)
        return None

    def _compile(self, program: EngineProgram) -> tuple[Measured | DoesNotFit, float]:
        """Returns the compiled program, and its operations where they can be counted (else 0)."""
        traced, question = program.jitted.trace(*program.arguments), self.question
        effort = question.vocoder_effort if program.name == "vocoder" else question.effort
        try:
            measured = compile_traced(traced, self._platform, effort)
        except jax.errors.JaxRuntimeError as error:
            raise SparkError(f"{question.model} on {self._where}: {program.name}: {failure(error)}") from error
        return measured, flops.count_flops(traced.jaxpr) if program.name == "vocoder" else 0.0

    def _at_best(self, what: str, operations: float, moved: float) -> float | None:
        """Prints and returns the shortest seconds of a run of a program: of its arithmetic, or of its memory."""
        if self.chip is None:
            return None
        compute, memory = operations / self.chip.flops, moved / self.chip.memory_bandwidth
        print(
            f"                {what} {1e3 * max(compute, memory):.2f} ms: compute {1e3 * compute:.2f}, memory ", end=""
        )
        print(f"{1e3 * memory:.2f}", flush=True)
        return max(compute, memory)


def cache_copies(engine: AbstractEngine, window: int, text: str) -> list[str]:
    """Returns the instructions of a compiled decode block that write as much as half of a layer's keys in the window.

    A step reads the cache where it is, and updates it in place.
    """
    keys = chip_bytes(engine.state.cache.keys) * window / engine.capacity
    return hlo.large_writes(text, keys / engine.config.llm.num_hidden_layers / 2)


def _cost(measured: Measured, audio: float | None = None) -> Cost:
    return Cost(measured.outputs + measured.temporaries, audio)


def _refuse(program: EngineProgram, refused: DoesNotFit) -> Cost:
    print(f"  {program.name:<13} {program.sizes}: does not fit: {refused.message}", flush=True)
    return Cost(float("inf"))


def _tell(program: EngineProgram, measured: Measured, figures: str) -> None:
    print(f"  {program.name:<13} {program.sizes}; compiled in {measured.seconds:.0f} s; {figures}", flush=True)
