"""The command that serves a model over HTTP."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.cli.options import ModelOption


def serve(
    model: ModelOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: one that is free.")] = 8000,
    slots: Annotated[int, typer.Option(help="Requests that are spoken together.")] = 16,
    queue: Annotated[int, typer.Option(help="Requests that may wait beside them.")] = 64,
    voices: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of voices, also those of uploads. Default: in memory only."),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="SPARK_JAX_API_KEY",
            help="Opens the API; several are taken, in the variable between spaces. Default: everybody may use it.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until the speech of a request must be made.")] = 300.0,
    max_characters: Annotated[int, typer.Option(help="The longest text of a request.")] = 4096,
    drain: Annotated[float, typer.Option(help="Seconds for what is at work when the server is told to end.")] = 60.0,
) -> None:
    """Serve a model over HTTP: OpenAI's speech API, streams, voices, and a page at /.

    SIGTERM and SIGINT end it, when what is at work is finished.
    """
    from spark_jax.serve.settings import ServerSettings

    settings = ServerSettings(
        api_keys=tuple(api_key or ()), queue=queue, timeout=timeout, max_characters=max_characters, drain=drain
    )
    from spark_jax.inference.engine import EngineSettings

    engine = dataclasses.replace(EngineSettings(), slots=slots)
    from spark_jax.serve.run import create_app, listen, run

    listener = listen(host, port)
    from spark_jax.inference.synthesize import SparkTTS

    tts = SparkTTS.load(model, engine=engine)
    name = "tiny-en" if model is None else model.resolve().name
    app = create_app(tts, settings, model=name, voices_directory=voices)
    address = listener.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    typer.echo(f"{name}: http://{shown}:{address[1]}")
    run(app, listener, settings.drain)
