"""Commands that make the data of the trainings: tokens of a corpus, and records."""

import os
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.cli.options import check_input_files, group
from spark_jax.errors import SparkError
from spark_jax.shared.config_files import find_config

app = group("Prepare the data that trainings read.")

CORES = os.cpu_count() or 1

Records = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for shards and indices.")]
Shards = Annotated[int, typer.Option(min=1, max=99_999, help="Files that each split is divided into.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
OnError = Annotated[
    str, typer.Option(metavar="ACTION", help="A line or file that cannot be used: raise, or skip and count it.")
]


@app.command()
def encode(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder with metadata.jsonl.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="JSON Lines file to write.")],
    model: Annotated[Path, typer.Option(metavar="DIR", help="Model directory, or output folder of a training.")],
    wav2vec2: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Where the feature extractor is from, in place of DIR's.")
    ] = None,
    bicodec: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Where the codec is from, in place of DIR's.")
    ] = None,
    batch_frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Padded frames in a batch, on each device. Default: 2048.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that read audio.")] = 2,
    on_error: OnError = "skip",
) -> None:
    """Encode every utterance of a corpus into tokens, on all devices of this machine.

    A killed run goes on where it stopped. Lines and files that cannot be used (missing, no audio, NaN, silence) are
    left out and counted by reason in the last line; the exit code is then 1. With --on-error raise the first one ends
    the run, and the exit code is 2.
    """
    _check_action(on_error)
    check_input_files(corpus / "metadata.jsonl")
    from spark_jax.data import manifest, sources
    from spark_jax.prepare.encode import encode_corpus, load_codec
    from spark_jax.shared import compilation_cache

    compilation_cache.enable()
    dropped = sources.DropCounter(on_error)
    records = manifest.read_corpus(corpus, None, dropped=dropped)
    options = {} if batch_frames is None else {"batch_length": batch_frames}
    encode_corpus(records, output, load_codec(model, wav2vec2, bicodec, **options), threads, dropped)
    if dropped.faults:
        raise typer.Exit(1)


@app.command()
def token_records(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="JSON Lines of `spark-jax prepare encode`.")],
    output: Records,
    tokenizer: Annotated[
        str, typer.Option(metavar="DIR", help='That of the training: a folder, a ranks file, or "bytes".')
    ],
    model: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Sizes, a YAML file or a recipe. Default: the release's.")
    ] = None,
    shards: Shards = 16,
    workers: Workers = CORES,
    on_error: OnError = "raise",
) -> None:
    """Write token records, which `spark-jax train llm` reads."""
    if model is not None:
        find_config(model)
    _check_action(on_error)
    check_input_files(source)
    from spark_jax.prepare.conversions import TokenConversion
    from spark_jax.prepare.records import convert

    convert(TokenConversion(tokenizer, model), source, output, shards, workers, on_error)


@app.command()
def audio_records(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder with metadata.jsonl and audio files.")],
    output: Records,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON Lines of `spark-jax prepare encode`: its ids go into the records."),
    ] = None,
    sample_rate: Annotated[
        int | None,
        typer.Option(
            metavar="HZ", min=1, help="Of the records; other files are resampled. Default: the release's, 16000."
        ),
    ] = None,
    shards: Shards = 16,
    workers: Workers = CORES,
    on_error: OnError = "raise",
) -> None:
    """Write audio records, which `spark-jax train codec` reads.

    Mono FLAC files of the rate go in as they are, others as 16-bit FLAC of one channel.
    """
    source = corpus / "metadata.jsonl"
    _check_action(on_error)
    check_input_files(source)
    from spark_jax.config import RELEASE
    from spark_jax.prepare.conversions import AudioConversion
    from spark_jax.prepare.records import convert

    rate = RELEASE.sample_rate if sample_rate is None else sample_rate
    conversion = AudioConversion(str(corpus), None if tokens is None else str(tokens), rate, on_error)
    convert(conversion, source, output, shards, workers, on_error)


def _check_action(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise SparkError(f"--on-error is {on_error!r}, expected raise or skip")
