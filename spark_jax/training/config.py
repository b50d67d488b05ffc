"""What all trainings' configurations share: the mesh, and the loop."""

import dataclasses

from spark_jax.dataclass_reader import PlainNumbers


@dataclasses.dataclass(frozen=True)
class MeshConfig(PlainNumbers):
    """Devices on each mesh axis, data -1 takes all that the others leave; and what is told to their compiler."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    # On CPUs a step's temporaries are one block, cleared anew by the system at every step; in blocks of so many MB,
    # smaller than 32, malloc keeps them. For small models: with arrays larger than a block, memory grows instead.
    # The compilation cache cannot keep such steps: each start compiles them.
    cpu_block_mb: int | None = None


@dataclasses.dataclass(frozen=True)
class LoopConfig(PlainNumbers):
    """Length and rhythm of a run, counted in steps."""

    steps: int = 1000
    log_every: int = 20
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2  # the newest
    keep_best: int = 0  # and those with the least validation metric; the best one's parts go to the folder `best`
    best_metric: str = "loss"
    max_skipped: int = 100  # updates left out in a row, because a gradient was not finite, after which the run ends
    seed: int = 0
    profile: tuple[int, int] | None = None  # first step traced into the folder `profile`, and the one after the last
