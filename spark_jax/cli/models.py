"""Commands that make, change and describe model directories: convert, export, init-llm, assemble and info."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.cli.options import NewDirectory, check_input_files
from spark_jax.errors import ManyFaultsError, SparkError
from spark_jax.shared.config_files import find_config, load_config

TrainedPart = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Output folder of a training, in place of MODEL's.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="List every fault, not the first five, on standard error.")]
ALL_PARTS = "bicodec,wav2vec2,llm"


@contextlib.contextmanager
def _all_faults(verbose: bool) -> Iterator[None]:
    """Prints the faults that the message of an error leaves out, a line each."""
    try:
        yield
    except ManyFaultsError as error:
        for fault in error.faults if verbose else ():
            typer.echo(fault, err=True)
        raise


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Directory in the release's layout, or a Hub id (owner/name).")
    ],
    destination: NewDirectory,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="float32 or bfloat16: how the LLM's weight matrices are stored.")
    ] = "float32",
    parts: Annotated[str, typer.Option(metavar="PARTS", help="Some of bicodec,wav2vec2,llm.")] = ALL_PARTS,
    llm: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="LLM with its tokenizer, in place of the release's: in its layout, or from a training."
        ),
    ] = None,
    lora: Annotated[str | None, typer.Option(metavar="DIR", help="PEFT LoRA adapter to merge into the LLM.")] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Run wav2vec2 and the LLM in PyTorch beside ours (extra parity); 1: not equal."),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Convert PyTorch weights to a model directory (torch is not needed).

    SRC holds BiCodec, wav2vec2-large-xlsr-53 and LLM, as the release does; weights may be safetensors or
    pytorch_model.bin, whole or in shards, the LLM any Qwen2, Qwen2.5 or Qwen3.
    """
    from spark_jax.convert import verify as parity
    from spark_jax.convert.official import convert as convert_directory

    if verify:
        parity.require(lora, llm)
    start = time.perf_counter()
    with _all_faults(verbose):
        facts = convert_directory(source, destination, dtype, parts.split(","), llm, lora)
    typer.echo(
        f"{destination}: {facts.parameters:,} parameters, {facts.bytes / 1e6:,.1f} MB, "
        f"in {time.perf_counter() - start:.1f} s"
    )
    if verify:
        report = parity.verify(source, destination, llm, lora)
        typer.echo(report)
        if not report.passed:
            raise typer.Exit(1)


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory, or output folder of a training.")],
    destination: NewDirectory,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="float32, bfloat16 or float16: the LLM's file. Default: as stored."),
    ] = None,
    parts: Annotated[
        str | None, typer.Option(metavar="PARTS", help="Some of bicodec,wav2vec2,llm. Default: all of MODEL's.")
    ] = None,
    llm: TrainedPart = None,
    bicodec: TrainedPart = None,
    wav2vec2: TrainedPart = None,
    verbose: Verbose = False,
) -> None:
    """Write the release's layout back: for the official code, transformers, vLLM and others.

    --llm, --bicodec and --wav2vec2 take the output folder of a training, whose weights go in place of MODEL's.
    """
    from spark_jax.convert.export import export as export_model

    start = time.perf_counter()
    trained = {"llm": llm, "bicodec": bicodec, "wav2vec2": wav2vec2}
    trained = {part: folder for part, folder in trained.items() if folder is not None}
    with _all_faults(verbose):
        sizes = export_model(model, destination, dtype, parts.split(",") if parts is not None else None, trained)
    listed = ", ".join(f"{part} {size / 1e6:,.1f} MB" for part, size in sizes.items())
    typer.echo(f"{destination}: {listed}, in {time.perf_counter() - start:.1f} s")


def init_llm(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Directory of a Qwen2, Qwen2.5 or Qwen3, or its Hub id.")],
    destination: NewDirectory,
    vocab_size: Annotated[int, typer.Option(metavar="ROWS", help="Rows of the embedding. The release: 166000.")],
    seed: Annotated[int, typer.Option(help="Of the new rows.")] = 0,
    verbose: Verbose = False,
) -> None:
    """Make the start of a pretraining from a base Qwen.

    The tokenizer is extended by the speech tokens; their rows of the embedding (and of an untied head) are drawn
    with mean and covariance of the base's. `spark-jax train llm` takes DST as init_from and as model, DST/tokenizer
    as tokenizer (see the recipe llm_0_5b).
    """
    from spark_jax.convert.init_llm import init_llm as initialize

    start = time.perf_counter()
    with _all_faults(verbose):
        made = initialize(base, destination, vocab_size, seed)
    typer.echo(
        f"{destination}: {made.base_tokens:,} tokens of the base, {made.tokens:,} with speech, "
        f"{made.config.vocab_size:,} rows, in {time.perf_counter() - start:.1f} s"
    )


def assemble(
    destination: NewDirectory,
    wav2vec2: Annotated[Path, typer.Option(metavar="RUN", help="Output folder of `spark-jax train ctc`.")],
    bicodec: Annotated[Path, typer.Option(metavar="RUN", help="Output folder of `spark-jax train codec`.")],
    llm: Annotated[Path, typer.Option(metavar="RUN", help="Output folder of `spark-jax train llm`.")],
    recognizer: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Output folder of `spark-jax train ctc`: then subtitles have times of words."),
    ] = None,
    lexicon: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="How words are written in the labels of --recognizer, where those are no letters."
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON Lines of `spark-jax prepare encode`: the default voice is the training utterance whose global "
            "tokens agree best with those of the others.",
        ),
    ] = None,
    default_voice: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="A voice made by `spark-jax voice`, in place of --tokens.")
    ] = None,
    voices: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Voices of `spark-jax voice`, NAME.json each; default.json may be one."),
    ] = None,
    model_card: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Markdown file to put in. Default: one is made.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="float16, bfloat16 or float32: how the weight matrices are stored.")
    ] = "float16",
    model: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Sizes, a YAML file or a recipe. Default: those of the runs.")
    ] = None,
) -> None:
    """Put the parts that trainings wrote into one model directory, with a default voice.

    Each RUN may be a model directory, too. The tokenizer is that of --llm.
    """
    if tokens is not None and default_voice is not None:
        raise SparkError("--tokens and --default-voice exclude each other: give one of them")
    if lexicon is not None and recognizer is None:
        raise SparkError("--lexicon needs --recognizer: it writes words in its labels")
    check_input_files(tokens, default_voice, model_card, lexicon)
    if model is not None:
        find_config(model)
    from spark_jax.config import SparkConfig
    from spark_jax.convert import assemble as assembly
    from spark_jax.model_directory.voice import Voice

    start = time.perf_counter()
    runs = {"wav2vec2": wav2vec2, "bicodec": bicodec, "llm": llm}
    config = assembly.sizes(destination, runs) if model is None else load_config(SparkConfig, model)
    if recognizer is not None:
        runs["recognizer"] = recognizer
    voice = None
    if tokens is not None:
        voice = assembly.most_typical_voice(tokens)
    elif default_voice is not None:
        voice = Voice.load(default_voice, config)
    named = {path.stem: Voice.load(path, config) for path in sorted(voices.glob("*.json"))} if voices else {}
    if voices is not None and not named:
        raise SparkError(f"--voices {voices}: holds no voice, expected files NAME.json of `spark-jax voice`")
    size = assembly.assemble(
        destination, runs, config, voice, voices=named, dtype=dtype, model_card=model_card, lexicon=lexicon
    )
    typer.echo(f"{destination}: {size / 1e6:.1f} MB, in {time.perf_counter() - start:.1f} s")


def info(
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Default: the embedded voice.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="First compare every file with the hashes it was written with.")
    ] = False,
) -> None:
    """Show the sizes, voices and origin of a model directory."""
    from spark_jax.inference.synthesize import EMBEDDED_VOICE
    from spark_jax.model_directory import directory as model_directory
    from spark_jax.model_directory import manifest

    directory = EMBEDDED_VOICE if directory is None else directory
    checked = manifest.check(directory) if check else 0
    facts = model_directory.info(directory)
    typer.echo(f"{facts.directory}  ({facts.bytes / 1e6:,.1f} MB)")
    for name, part in facts.parts.items():
        typer.echo(f"  {name:10} {part.parameters:13,} parameters  {part.dtype:9} {part.bytes / 1e6:9,.1f} MB")
    typer.echo(f"  {'together':10} {facts.parameters:13,} parameters")
    if "llm" in facts.parts:
        typer.echo(f"  vocabulary of {facts.vocabulary:,} tokens")
    if "bicodec" in facts.parts:
        typer.echo(f"  {facts.semantic_codes:,} semantic codes, {facts.token_rate:g} tokens a second")
        typer.echo(f"  {facts.global_codes:,} global codes, {facts.global_tokens} tokens an utterance")
        typer.echo(f"  audio at {facts.sample_rate:,} Hz")
    typer.echo(f"  voices: {', '.join(facts.voices) or 'none'}")
    for line in facts.provenance.lines() if facts.provenance else ["where it comes from is not recorded"]:
        typer.echo(f"  {line}")
    if check:
        typer.echo(f"  all {checked} files are as they were written")
