"""The `spark-jax` command; each family of commands is a module beside this one.

Bad input of any kind is one line on standard error and exit code 2. What needs JAX is imported inside the
commands, so that `--help` and mistakes on the command line answer at once; outputs are checked before the
long work starts."""

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from spark_jax.cli import batch, evaluate, models, plan, prepare, serve, speech, train
from spark_jax.errors import SparkError, one_line

# ClickException, the base of all mistakes on the command line. Older versions of typer take it from click,
# newer ones from a copy of their own, so it is found through a class that all of them export.
CommandLineError = typer.BadParameter.__mro__[2]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        import spark_jax

        typer.echo(f"spark-jax {spark_jax.__version__}")
        raise typer.Exit()
    return wanted


@app.callback(invoke_without_command=True)
def spark_jax_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Spark-TTS in JAX: text to speech, voice cloning and the speech codec."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (speech.synthesize, speech.voice, speech.encode, speech.decode):
    app.command()(command)
app.command()(batch.batch)
for command in (models.convert, models.export, models.init_llm, models.assemble, models.info):
    app.command()(command)
app.command()(serve.serve)
app.command()(train.train)
app.command()(plan.plan)
app.add_typer(prepare.app, name="prepare")
app.add_typer(evaluate.app, name="evaluate")


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0, or 2 for bad input; `arguments` None: those of the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning
        try:
            status = app(args=arguments, prog_name="spark-jax", standalone_mode=False)
        except SparkError as error:
            status = _fail(error)
        except CommandLineError as error:
            status = _fail(error.format_message() + _hint(error))
        except OSError as error:
            status = _fail(f"{error.filename}: {error.strerror}" if error.filename else error)
        except (typer.Abort, KeyboardInterrupt):
            status = 130
    sys.exit(status)


def _hint(error: CommandLineError) -> str:
    """What helps where a text was taken for an option."""
    unknown, command = getattr(error, "option_name", None), getattr(getattr(error, "ctx", None), "info_name", None)
    if unknown is None or command != "synthesize":
        return ""
    return '; a text that begins with a dash comes after --: spark-jax synthesize -o out.wav -- "-5 degrees"'


def _fail(message: object) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
