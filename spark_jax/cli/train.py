"""The command that trains: the language model, the codec, or the recognizer that becomes the feature extractor."""

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from spark_jax.cli.options import ConfigArgument, Overrides
from spark_jax.shared.config_files import find_config


class Training(enum.StrEnum):
    """What is trained."""

    LLM = "llm"
    CODEC = "codec"
    CTC = "ctc"


def train(
    kind: Annotated[Training, typer.Argument(help="The language model, the codec, or wav2vec2 as a recognizer (ctc).")],
    config: ConfigArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="RUN", help="Folder of checkpoints, metrics and weights."),
    ],
    overrides: Overrides = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="START:STOP", help="Trace these steps into RUN/profile; short for --set loop.profile=…"),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Several processes: where process 0 listens.")
    ] = None,
    num_processes: Annotated[int | None, typer.Option(metavar="N", help="How many there are.")] = None,
    process_id: Annotated[int | None, typer.Option(metavar="I", help="Which one this is, from 0.")] = None,
    heartbeat: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            help="Silence after which a process counts as dead and the others end. Default: 60.",
        ),
    ] = None,
) -> None:
    """Train by CONFIG, from scratch or on from RUN's newest checkpoint.

    Several processes find each other by themselves on TPU pods and under SLURM; elsewhere each is given
    --coordinator, --num-processes and --process-id.
    """
    overrides = [*(overrides or [])]
    if profile is not None:
        overrides.append(f"loop.profile=[{', '.join(_steps(profile))}]")
    find_config(config)  # a mistake in the name is told before JAX is imported
    from spark_jax.training.launch import launch

    given: dict[str, Any] = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "heartbeat": heartbeat,
    }
    launch(kind.value, config, output, overrides, **{name: value for name, value in given.items() if value is not None})


def _steps(profile: str) -> tuple[str, str]:
    start, colon, stop = profile.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise typer.BadParameter(f"--profile is {profile!r}, expected START:STOP, two numbers of steps")
    return start, stop
