"""What several commands share: options of the same meaning, and the checks of the files that they name."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.errors import SparkError

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="Model directory. Default: the embedded voice tiny-en."),
]
OutputAudio = Annotated[Path, typer.Option("--output", "-o", metavar="FILE.wav", help="Where the speech goes.")]
OutputJson = Annotated[Path, typer.Option("--output", "-o", metavar="FILE.json", help="Where the tokens go.")]
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


def check_output_file(path: Path) -> None:
    """Checks that an output can be written, before the long work starts.

    Raises:
      SparkError: it is a folder, or its folder does not exist or cannot be written.
    """
    if path.is_dir():
        raise SparkError(f"{path}: is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise SparkError(f"{path}: the folder {path.parent} does not exist")
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # permissions alone tell a superuser nothing
            pass
    except OSError as error:
        raise SparkError(f"{path}: the folder {path.parent} cannot be written: {error.strerror}") from error
