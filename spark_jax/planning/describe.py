"""What a plan says, and the shortest time that a step can take."""

import dataclasses
from typing import Any

from spark_jax.performance.hardware import GIB, Accelerator
from spark_jax.planning.compile import Plan
from spark_jax.planning.trainings import Corpus, corpus_steps, of


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


def roofline(plan: Plan, chip: Accelerator) -> Roofline:
    """Returns the shortest times of a step with each resource at its peak.

    Collectives are rings along one axis of the interconnect.
    """
    return Roofline(
        compute=plan.executed_flops / plan.program.mesh.size / chip.flops,
        memory=plan.moved.memory_bytes / chip.memory_bandwidth,
        links=plan.moved.link_bytes / (chip.link_bandwidth or float("inf")),
    )


def describe(plan: Plan, config: Any, chip: Accelerator | None, limit: float, corpus: Corpus) -> list[str]:
    """Returns the lines of a plan.

    Args:
      chip: None: its figures are not known, and roofline and time are left out.
      limit: bytes of a chip's memory.
    """
    mesh, moved = dict(plan.program.mesh.shape), plan.moved
    chips = plan.program.mesh.size
    lines = [
        f"mesh          {', '.join(f'{name} {size}' for name, size in mesh.items())}; {of(config).batch(config)}; "
        f"compiled in {plan.seconds:.0f} s",
        f"memory a chip arguments {plan.arguments / GIB:.2f} + outputs {plan.outputs / GIB:.2f} + temporaries "
        f"{plan.temporaries / GIB:.2f} = {plan.memory / GIB:.2f} GiB"
        + (f" of {limit / GIB:.1f}: fits" if limit < float("inf") else ""),
    ]
    for kind, collective in sorted(moved.collectives.items(), key=lambda item: -item[1].link_bytes):
        lines.append(
            f"collectives   {kind}: {collective.count:,} of {_gigabytes(collective.operand_bytes)} in all, "
            f"{_gigabytes(collective.link_bytes)} received a chip and step"
        )
    if moved.unknown_loops:
        lines.append(f"              ({moved.unknown_loops} loops of unknown length count as one turn)")
    lines.append(
        f"FLOPs a step  model {plan.model_flops:.3e}, executed {plan.executed_flops:.3e}; a chip reads and writes "
        f"{_gigabytes(moved.memory_bytes)}: {plan.executed_flops / chips / moved.memory_bytes:.0f} FLOPs a byte"
    )
    if chip is None:
        return lines
    roof = roofline(plan, chip)
    peak = chips * chip.flops
    lines.append(
        f"roofline      compute {roof.compute:.4f} s, memory {roof.memory:.4f} s, links {roof.links:.4f} s: bound by "
        f"{roof.bound}; at best {roof.step:.4f} s a step, MFU {plan.model_flops / peak / roof.step:.2f}"
    )
    seconds = plan.model_flops / peak / corpus.mfu
    steps, text = corpus_steps(config, plan.system, corpus)
    lines.append(f"time          {text}: {steps * seconds / 3600:,.1f} h at an MFU of {corpus.mfu}")
    return lines


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.3f} MB"
