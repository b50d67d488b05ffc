"""The command that speaks a file of jobs, on one machine or many."""

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.cli.options import ModelOption, check_input_files
from spark_jax.errors import SparkError


class Kind(StrEnum):
    """Who speaks."""

    local = "local"
    ray = "ray"


def batch(
    jobs: Annotated[
        Path, typer.Argument(metavar="JOBS.jsonl", help="A job a line: id, text, and what it is to sound like.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for audio and lists.")],
    model: ModelOption = None,
    slots: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Requests that decode together. Default: 16.")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="float32 or bfloat16.")] = "float32",
    format: Annotated[str, typer.Option(metavar="FORMAT", help="wav, flac, ogg, mp3 or opus.")] = "wav",
    transcripts: Annotated[
        bool, typer.Option("--transcripts", help="Write the words as they were spoken beside each audio file (.txt).")
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, metavar="N", help="Lines of a shard.")] = 1000,
    shard_index: Annotated[
        str | None,
        typer.Option(
            metavar="I",
            help="Of this process among --shard-count, from 0: it does every Nth shard. A number, or the environment "
            "variable that holds it, such as SLURM_ARRAY_TASK_ID.",
        ),
    ] = None,
    shard_count: Annotated[
        str | None,
        typer.Option(metavar="N", help="Processes that share the shards; a number or an environment variable."),
    ] = None,
    engine: Annotated[Kind, typer.Option(help="local: this process; ray: workers of a Ray cluster.")] = Kind.local,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Of a Ray cluster. Default: that of RAY_ADDRESS; without one it is started here."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With ray. Default: what the cluster has room for.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="With ray. Default: 1 where the cluster has GPUs.")
    ] = None,
    tpus_per_worker: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Chips, with ray. Default: all of a host.")
    ] = None,
) -> None:
    """Speak every job of JOBS.jsonl: audio files, and the lists manifest.jsonl and errors.jsonl.

    A line is an object with id, text, and any of: voice, reference, transcript, gender, pitch, speed, pitch_hz,
    syllables_per_second, seed, temperature, top_k, top_p, greedy, max_seconds, normalize, retries. A killed run goes on
    with the same command. The exit code is 1 where a job failed.
    """
    check_input_files(jobs)
    if dtype not in ("float32", "bfloat16"):
        raise SparkError(f"--dtype is {dtype!r}, expected float32 or bfloat16")
    index, count = _share(shard_index, shard_count, os.environ)
    from spark_jax.audio.write import format_of

    format = format_of("audio", format)
    if engine is Kind.local:
        asked = {"--ray-address": ray_address, "--workers": workers}
        asked |= {"--gpus-per-worker": gpus_per_worker, "--tpus-per-worker": tpus_per_worker}
        if given := [name for name, value in asked.items() if value is not None]:
            raise SparkError(f"{given[0]} needs --engine ray")
    from spark_jax.inference.engine import EngineSettings
    from spark_jax.jobs.batch import run_batch
    from spark_jax.jobs.run import local_pool
    from spark_jax.jobs.worker import WorkerSettings

    settings = WorkerSettings(
        source=str(jobs.absolute()),
        output=str(output.absolute()),
        model=None if model is None else str(model.absolute()),
        slots=EngineSettings().slots if slots is None else slots,
        dtype=dtype,
        format=format,
        transcripts=transcripts,
        shard_size=shard_size,
    )
    make_pool = local_pool
    if engine is Kind.ray:
        from spark_jax.jobs.ray_pool import Cluster, ray_pool

        cluster = Cluster(ray_address, workers, gpus_per_worker, tpus_per_worker)
        make_pool = lambda settings, progress: ray_pool(settings, progress, cluster)  # noqa: E731
    result = run_batch(settings, make_pool, index, count)
    tally, rate = result.tally, result.seconds / max(result.elapsed, 1e-9)
    made = f"{result.seconds:.1f} s of it in these {result.elapsed:.1f} s, {rate:.1f} a second"
    typer.echo(f"{output}: {tally.spoken} jobs spoken, {tally.failed} failed, {tally.seconds:.1f} s of audio ({made})")
    for number, reason in sorted(result.set_aside.items()):
        typer.echo(f"error: shard {number} is set aside, start the same command to try it again: {reason}", err=True)
    if result.others_left:
        typer.echo(f"{result.others_left} shards of other processes are not finished; who ends last writes the lists")
    if not result.complete:
        raise typer.Exit(1)


def _share(index: str | None, count: str | None, environ: Mapping[str, str]) -> tuple[int, int]:
    """Returns number and count of the processes that share the shards.

    Raises:
      SparkError: one of them is missing, no number, or out of range.
    """
    if index is None and count is None:
        return 0, 1
    if index is None or count is None:
        raise SparkError("--shard-index and --shard-count go together: give both of them or neither")
    numbers = []
    for option, value in (("--shard-index", index), ("--shard-count", count)):
        found = value if value.isdigit() else environ.get(value, "")
        if not found.isdigit():
            raise SparkError(f"{option} is {value}, expected a number, or an environment variable that holds one")
        numbers.append(int(found))
    number, total = numbers
    if number >= total:
        raise SparkError(f"--shard-index is {number}, expected 0 to {total - 1} (--shard-count)")
    return number, total
