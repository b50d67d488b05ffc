"""The command that says what a training needs on other machines."""

from pathlib import Path
from typing import Annotated

import typer

from spark_jax.cli.options import ConfigArgument, Overrides, check_output_file
from spark_jax.errors import SparkError
from spark_jax.shared.config_files import find_config


def plan(
    config: ConfigArgument,
    topology: Annotated[
        list[str] | None,
        typer.Option(metavar="TPU", help="TPU chips, such as v5e:4x4; several are planned in turn. Needs extra plan."),
    ] = None,
    cpu_devices: Annotated[
        int | None, typer.Option(metavar="N", help="As many CPU devices, without the TPU compiler.")
    ] = None,
    overrides: Overrides = None,
    memory: Annotated[float | None, typer.Option(metavar="GIB", help="Of a chip. Default: what the chip has.")] = None,
    tries: Annotated[int, typer.Option(metavar="N", help="Settings to compile in search of one that fits.")] = 8,
    mfu: Annotated[float, typer.Option(help="Assumed model FLOPs utilization.")] = 0.4,
    effort: Annotated[
        float,
        typer.Option(
            help="Of the TPU compiler, from 0 (what a run has) to -1: compiles several times faster, in a quarter of "
            "the memory; a chip's traffic is then overstated, its memory a few percent off.",
        ),
    ] = 0.0,
    save_hlo: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The compiled program's text, to look into.")
    ] = None,
    hours_of_audio: Annotated[float | None, typer.Option(metavar="H", help="Of a corpus, which is read once.")] = None,
    tokens: Annotated[
        float | None, typer.Option(metavar="N", help="Of a corpus of the language model, which is read once.")
    ] = None,
    utterance_seconds: Annotated[
        float, typer.Option(metavar="S", help="Mean length of an utterance, for --hours-of-audio.")
    ] = 8.0,
) -> None:
    """Compile a training's step for other machines, and say whether it fits.

    For each topology: memory of a chip, collectives, FLOPs, the shortest time that a step can take (roofline), and
    the time for the run or a corpus at an assumed utilization. Exit code 1: it does not fit; then the nearest
    setting that does is searched for. Exit code 2: nothing can be said, and why.
    """
    if bool(topology) == (cpu_devices is not None):
        raise SparkError("where to run is missing or given twice: expected --topology or --cpu-devices")
    if hours_of_audio is not None and tokens is not None:
        raise SparkError("--hours-of-audio and --tokens exclude each other: give one of them")
    if not -1 <= effort <= 0:
        raise SparkError(f"--effort is {effort}, expected -1 to 0")
    for name, value in {
        "--memory": memory,
        "--mfu": mfu,
        "--hours-of-audio": hours_of_audio,
        "--tokens": tokens,
        "--utterance-seconds": utterance_seconds,
    }.items():
        if value is not None and not 0 < value < float("inf"):
            raise SparkError(f"{name} is {value}, expected a number above 0")
    if save_hlo is not None:
        save_hlo = check_output_file(save_hlo)
    find_config(config)  # a mistake in the name is told before JAX is imported
    from spark_jax.planning import devices
    from spark_jax.planning.plan import Question
    from spark_jax.planning.plan import plan as plan_training
    from spark_jax.planning.trainings import Corpus

    question = Question(
        config=config,
        overrides=tuple(overrides or ()),
        memory=memory,
        tries=tries,
        effort=effort,
        save_hlo=save_hlo,
        corpus=Corpus(hours_of_audio, tokens, utterance_seconds, mfu),
    )
    fits = True
    for name in topology or [f"{cpu_devices} CPU devices"]:
        found = devices.topology(name) if topology else devices.cpu(cpu_devices)
        fits &= plan_training(question, name, found)
    raise typer.Exit(0 if fits else 1)
