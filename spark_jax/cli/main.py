"""The `spark-jax` command: text to speech, voices, the codec's tokens, and model directories.

Bad input of any kind is one line on standard error and exit code 2. What needs JAX is imported inside the
commands, so that `--help` and mistakes on the command line answer at once; outputs are checked before the
long work starts."""

import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.errors import SparkError, one_line

# ClickException, the base of all mistakes on the command line. Older versions of typer take it from click,
# newer ones from a copy of their own, so it is found through a class that all of them export.
CommandLineError = typer.BadParameter.__mro__[2]

MODELS_OWN = "Default: the model's own, the release's"
LEVELS = "very_low, low, moderate, high or very_high"

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="Model directory. Default: the embedded voice tiny-en."),
]
OutputAudio = Annotated[Path, typer.Option("--output", "-o", metavar="FILE.wav", help="Where the speech goes.")]
OutputJson = Annotated[Path, typer.Option("--output", "-o", metavar="FILE.json", help="Where the tokens go.")]
NewDirectory = Annotated[
    Path, typer.Argument(metavar="DST", help="The directory to make; must not exist, or be empty.")
]
TrainedPart = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Output folder of a training, in place of MODEL's.")
]
ALL_PARTS = "bicodec,wav2vec2,llm"
Transcript = Annotated[str | None, typer.Option(metavar="TEXT", help="What the reference says, word for word.")]


def _version(wanted: bool) -> None:
    if wanted:
        import spark_jax

        typer.echo(f"spark-jax {spark_jax.__version__}")
        raise typer.Exit()


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


@app.command()
def synthesize(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say.")],
    output: OutputAudio,
    model: ModelOption = None,
    voice: Annotated[Path | None, typer.Option(metavar="FILE.json", help="A voice made by `spark-jax voice`.")] = None,
    reference: Annotated[Path | None, typer.Option(metavar="FILE", help="A recording of the voice to clone.")] = None,
    transcript: Transcript = None,
    gender: Annotated[
        str | None, typer.Option(metavar="GENDER", help="female or male: the model makes up a voice.")
    ] = None,
    pitch: Annotated[
        str | None, typer.Option(metavar="LEVEL", help=f"{LEVELS}, with --gender. Default: moderate.")
    ] = None,
    speed: Annotated[
        str | None, typer.Option(metavar="LEVEL", help=f"{LEVELS}, with --gender. Default: moderate.")
    ] = None,
    pitch_hz: Annotated[
        float | None,
        typer.Option(metavar="HZ", help="Mean pitch, with any voice. Needs --syllables-per-second."),
    ] = None,
    syllables_per_second: Annotated[
        float | None, typer.Option(metavar="RATE", help="Speed, with any voice. Needs --pitch-hz.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling: the same seed gives the same audio.")] = 0,
    temperature: Annotated[
        float | None, typer.Option(help=f"Lower is steadier, higher is livelier. {MODELS_OWN} 0.8.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help=f"Sample from this many likeliest tokens. {MODELS_OWN} 50.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help=f"Sample from the likeliest tokens of this total probability. {MODELS_OWN} 0.95."),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False,
    max_seconds: Annotated[
        float | None,
        typer.Option(help="At most this much speech. Default: 60, or what the context holds."),
    ] = None,
) -> None:
    """Speak TEXT.

    The voice is that of --voice, of --reference, or made up for --gender; without any of them it is the
    model's default voice.
    """
    from spark_jax.audio.load import write_wav
    from spark_jax.inference.request import Request

    request = Request(
        text=text,
        voice=voice,
        reference=reference,
        transcript=transcript,
        gender=gender,
        pitch=pitch,
        speed=speed,
        pitch_hz=pitch_hz,
        syllables_per_second=syllables_per_second,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        greedy=greedy,
        max_seconds=max_seconds,
    )
    _check_output(output)
    _check_files(voice, reference)
    tts = _load(model, "bicodec", "wav2vec2", "llm")
    start = time.perf_counter()
    audio = tts.speak(request)
    write_wav(output, audio.samples, audio.sample_rate)
    seconds = len(audio.samples) / audio.sample_rate
    typer.echo(f"{output}: {seconds:.2f} s of speech in {time.perf_counter() - start:.2f} s")


@app.command()
def voice(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="A recording of the voice.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.json", help="Where the voice goes.")],
    transcript: Transcript = None,
    model: ModelOption = None,
) -> None:
    """Keep the voice of a recording in a file, for `synthesize --voice`.

    With --transcript the recording's own speech becomes part of every prompt and is continued, which is often
    closer to the speaker; without it only the speaker's tokens are used.
    """
    if transcript is not None and not transcript.strip():
        raise SparkError(f"transcript is {transcript!r}, expected what the reference says")
    _check_output(output)
    _check_files(reference)
    tts = _load(model, "bicodec", "wav2vec2")
    tts.voice(reference, transcript).save(output, tts.config.sample_rate)
    typer.echo(f"{output}: the voice of {reference}")


@app.command()
def encode(
    recording: Annotated[Path, typer.Argument(metavar="AUDIO", help="A recording of speech.")],
    output: OutputJson,
    model: ModelOption = None,
) -> None:
    """Turn a recording into tokens: the speaker's, and one for every 20 ms of speech."""
    from spark_jax.model_directory.voice import save_tokens

    _check_output(output)
    _check_files(recording)
    tts = _load(model, "bicodec", "wav2vec2")
    [(global_ids, semantic_ids)] = tts.codec.encode_files([recording])
    save_tokens(output, global_ids, semantic_ids, tts.config.sample_rate)
    typer.echo(f"{output}: {len(global_ids)} global and {len(semantic_ids)} semantic tokens")


@app.command()
def decode(
    tokens: Annotated[Path, typer.Argument(metavar="TOKENS.json", help="A file made by `spark-jax encode`.")],
    output: OutputAudio,
    model: ModelOption = None,
) -> None:
    """Turn tokens back into speech."""
    from spark_jax.audio.load import write_wav
    from spark_jax.model_directory.voice import load_tokens

    _check_output(output)
    _check_files(tokens)
    tts = _load(model, "bicodec")
    samples = tts.decode(*load_tokens(tokens, tts.config))
    write_wav(output, samples, tts.config.sample_rate)
    typer.echo(f"{output}: {len(samples) / tts.config.sample_rate:.2f} s")


@app.command()
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
        typer.Option(metavar="DIR", help="Fine-tuned LLM with its tokenizer, in place of the release's."),
    ] = None,
    lora: Annotated[str | None, typer.Option(metavar="DIR", help="PEFT LoRA adapter to merge into the LLM.")] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Run wav2vec2 and the LLM in PyTorch beside ours (extra parity); 1: not equal."),
    ] = False,
) -> None:
    """Convert PyTorch weights to a model directory (torch is not needed).

    SRC holds BiCodec, wav2vec2-large-xlsr-53 and LLM, as the release does; weights may be safetensors or
    pytorch_model.bin, whole or in shards, the LLM any Qwen2, Qwen2.5 or Qwen3.
    """
    from spark_jax.convert import verify as parity
    from spark_jax.convert.official import convert as convert_directory

    if verify:
        parity.require(lora)
    start = time.perf_counter()
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


@app.command()
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
) -> None:
    """Write the release's layout back: for the official code, transformers, vLLM and others.

    --llm, --bicodec and --wav2vec2 take the output folder of train/llm.py, train/bicodec.py or
    train/wav2vec2.py, whose weights go in place of MODEL's.
    """
    from spark_jax.convert.export import export as export_model

    start = time.perf_counter()
    trained = {"llm": llm, "bicodec": bicodec, "wav2vec2": wav2vec2}
    trained = {part: folder for part, folder in trained.items() if folder is not None}
    sizes = export_model(model, destination, dtype, parts.split(",") if parts is not None else None, trained)
    listed = ", ".join(f"{part} {size / 1e6:,.1f} MB" for part, size in sizes.items())
    typer.echo(f"{destination}: {listed}, in {time.perf_counter() - start:.1f} s")


@app.command()
def init_llm(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Directory of a Qwen2, Qwen2.5 or Qwen3, or its Hub id.")],
    destination: NewDirectory,
    vocab_size: Annotated[int, typer.Option(metavar="ROWS", help="Rows of the embedding. The release: 166000.")],
    seed: Annotated[int, typer.Option(help="Of the new rows.")] = 0,
) -> None:
    """Make the start of a pretraining from a base Qwen.

    The tokenizer is extended by the speech tokens; their rows of the embedding (and of an untied head) are drawn
    with mean and covariance of the base's. train/llm.py takes DST/llm as init_from, DST/tokenizer as tokenizer
    and DST/model.yaml as model (see configs/llm_0_5b.yaml).
    """
    from spark_jax.convert.init_llm import init_llm as initialize

    start = time.perf_counter()
    made = initialize(base, destination, vocab_size, seed)
    typer.echo(
        f"{destination}: {made.base_tokens:,} tokens of the base, {made.tokens:,} with speech, "
        f"{made.config.vocab_size:,} rows, in {time.perf_counter() - start:.1f} s"
    )


@app.command()
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


def _load(directory: Path | None, *parts: str):
    from spark_jax.inference.synthesize import SparkTTS

    return SparkTTS.load(directory, parts)


def _check_files(*paths: Path | None) -> None:
    """Inputs that are missing are told before the model is loaded."""
    for path in paths:
        if path is not None and not path.is_file():
            raise SparkError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")


def _check_output(path: Path) -> None:
    """An output that cannot be written is told before the long work starts."""
    if path.is_dir():
        raise SparkError(f"{path}: is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise SparkError(f"{path}: the folder {path.parent} does not exist")
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # permissions alone tell a superuser nothing
            pass
    except OSError as error:
        raise SparkError(f"{path}: the folder {path.parent} cannot be written: {error.strerror}") from error


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; `arguments` None: those of the process. Ends by SystemExit: 0, or 2 for bad input."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning
        try:
            status = app(args=arguments, prog_name="spark-jax", standalone_mode=False)
        except SparkError as error:
            status = _fail(error)
        except CommandLineError as error:
            status = _fail(error.format_message())
        except OSError as error:
            status = _fail(f"{error.filename}: {error.strerror}" if error.filename else error)
        except (typer.Abort, KeyboardInterrupt):
            status = 130
    sys.exit(status)


def _fail(message: object) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
