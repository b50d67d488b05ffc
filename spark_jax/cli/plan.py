"""The command that says what a training needs on other machines."""

from pathlib import Path
from typing import Annotated

import typer

from spark_jax.cli.options import Overrides, check_output_file
from spark_jax.errors import SparkError
from spark_jax.shared.config_files import find_config


def plan(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A recipe's name, such as llm_0_5b, or the path of a YAML file."),
    ] = None,
    inference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Plans the speech engine instead of a training: a model directory, the sizes of one, or 0.5b, the "
            "release's. No weights are read.",
        ),
    ] = None,
    topology: Annotated[
        list[str] | None,
        typer.Option(metavar="TPU", help="TPU chips, such as v5e:4x4; several are planned in turn. Needs extra plan."),
    ] = None,
    cpu_devices: Annotated[
        int | None, typer.Option(metavar="N", help="As many CPU devices, without the TPU compiler.")
    ] = None,
    overrides: Overrides = None,
    memory: Annotated[float | None, typer.Option(metavar="GIB", help="Of a chip. Default: what the chip has.")] = None,
    tries: Annotated[
        int, typer.Option(metavar="N", help="Settings, or numbers of slots, to compile in search of one that fits.")
    ] = 8,
    mfu: Annotated[float, typer.Option(help="Assumed model FLOPs utilization.")] = 0.4,
    effort: Annotated[
        float,
        typer.Option(
            help="Of the TPU compiler, from 0 (what a run has) to -1: compiles several times faster, in a quarter of "
            "the memory; a chip's traffic is then overstated, its memory a few percent off.",
        ),
    ] = 0.0,
    vocoder_effort: Annotated[
        float, typer.Option(help="With --inference: the same for the vocoder, which takes ten times as long.")
    ] = -1.0,
    save_hlo: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The compiled program's text, to look into.")
    ] = None,
    hours_of_audio: Annotated[float | None, typer.Option(metavar="H", help="Of a corpus, which is read once.")] = None,
    tokens: Annotated[
        float | None, typer.Option(metavar="N", help="Of a corpus of the language model, which is read once.")
    ] = None,
    utterance_seconds: Annotated[
        float, typer.Option(metavar="S", help="Mean length of an utterance, for --hours-of-audio and --inference.")
    ] = 8.0,
    slots: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --inference: of all chips. Default: 256 on each.")
    ] = None,
    window: Annotated[
        int, typer.Option(metavar="N", min=1, help="With --inference: tokens of each slot that a step reads.")
    ] = 1024,
    capacity: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --inference: tokens a slot has room for. Default: the longest answer."),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="With --inference: float32 or bfloat16.")] = "bfloat16",
    tensor: Annotated[
        int, typer.Option(metavar="N", min=1, help="With --inference: chips that divide the language model.")
    ] = 1,
) -> None:
    """Compile a training's step, or the speech engine, for other machines, and say whether it fits.

    For each topology: memory of a chip, collectives, FLOPs, the shortest time that a step can take (roofline), and
    the time for the run or a corpus at an assumed utilization. Exit code 1: it does not fit; then the nearest
    setting that does is searched for. Exit code 2: nothing can be said, and why.

    With --inference MODEL: the decode block, the reading of prompts and the vocoder; bytes of a decode step against the
    ideal, audio-seconds a second at best, and the largest number of slots that fits.
    """
    if (config is None) == (inference is None):
        raise SparkError("what to plan is missing or given twice: expected CONFIG or --inference MODEL")
    if dtype not in ("float32", "bfloat16"):
        raise SparkError(f"--dtype is {dtype}, expected float32 or bfloat16")
    if bool(topology) == (cpu_devices is not None):
        raise SparkError("where to run is missing or given twice: expected --topology or --cpu-devices")
    if hours_of_audio is not None and tokens is not None:
        raise SparkError("--hours-of-audio and --tokens exclude each other: give one of them")
    for name, value in {"--effort": effort, "--vocoder-effort": vocoder_effort}.items():
        if not -1 <= value <= 0:
            raise SparkError(f"{name} is {value}, expected -1 to 0")
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
    if inference is not None:
        from spark_jax.planning import devices
        from spark_jax.planning.inference import InferenceQuestion, plan_inference

        asked = InferenceQuestion(
            model=inference,
            slots=slots,
            window=window,
            capacity=capacity,
            dtype=dtype,
            tensor=tensor,
            utterance_seconds=utterance_seconds,
            memory=memory,
            tries=tries,
            effort=effort,
            vocoder_effort=vocoder_effort,
            save_hlo=save_hlo,
        )
        answer = lambda name, found: plan_inference(asked, name, found)  # noqa: E731
    else:
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
        answer = lambda name, found: plan_training(question, name, found)  # noqa: E731
    fits = True
    for name in topology or [f"{cpu_devices} CPU devices"]:
        found = devices.topology(name) if topology else devices.cpu(cpu_devices)
        fits &= answer(name, found)
    raise typer.Exit(0 if fits else 1)
