"""What several commands share: options of the same meaning, and the checks of the files that they name."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.errors import SparkError
from spark_jax.shared import files

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="Model directory. Default: the embedded voice tiny-en."),
]
OutputAudio = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where the speech goes: .wav, .flac, .ogg, .mp3 or .opus; - is standard output.",
    ),
]
AudioFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="wav, flac, ogg, mp3 or opus. Default: that of the extension, wav where there is none.",
    ),
]
OutputJson = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE.json", help="Where the tokens go; - is standard output."),
]
NewDirectory = Annotated[
    Path, typer.Argument(metavar="DST", help="The directory to make; must not exist, or be empty.")
]
Transcript = Annotated[str | None, typer.Option(metavar="TEXT", help="What the reference says, word for word.")]
ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A recipe's name, such as tiny_llm, or the path of a YAML file.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=value", help="Overrides a key of CONFIG; several are taken.")
]


def group(help: str) -> typer.Typer:
    """Returns a group of commands, which prints its help where none is named."""
    app = typer.Typer(help=help)

    @app.callback(invoke_without_command=True)
    def commands(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return app


def check_input_files(*paths: Path | None) -> None:
    """Checks that inputs exist, before the model is loaded; None is left out.

    Raises:
      SparkError: one is missing or no file.
    """
    for path in paths:
        if path is not None and not path.is_file():
            raise SparkError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")


def check_output_file(path: Path) -> Path:
    """Checks that an output can be written, before the long work starts, and returns its path; `-` is standard output.

    Raises:
      SparkError: it is a folder, or its folder does not exist or cannot be written.
    """
    if str(path) == "-":
        return files.STANDARD_OUTPUT
    if files.is_device(path):
        return path
    try:
        if path.is_dir():
            raise SparkError(f"{path}: is a folder, expected the name of a file")
        folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
        if not folder.is_dir():
            raise SparkError(f"{path}: the folder {folder} does not exist")
    except OSError as error:  # such as a name that is too long
        raise files.cannot_write(path, error) from error
    try:
        with tempfile.TemporaryFile(dir=folder):  # permissions alone tell a superuser nothing
            pass
    except OSError as error:
        raise SparkError(f"{path}: the folder {folder} cannot be written: {error.strerror}") from error
    return path


def check_output_audio(path: Path, format: str | None) -> Path:
    """Checks that audio can be written, in the format that is named or of the extension; see `check_output_file`.

    Raises:
      SparkError: as `check_output_file`, or there is no such format.
    """
    from spark_jax.audio.write import format_of

    path = check_output_file(path)
    format_of(path, format)
    return path


def say(message: str, output: Path) -> None:
    """Prints what was done: on standard output, or on standard error where the output itself goes there."""
    # A name of a file may hold bytes that are no text.
    message = message.encode("utf-8", "backslashreplace").decode()
    typer.echo(message, err=files.is_standard_output(output))
