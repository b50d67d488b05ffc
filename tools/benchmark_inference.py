"""`tools/benchmark.py inference`: how fast speech is made, in parts and as a whole, beside PyTorch.

    python tools/benchmark.py inference --reference Spark-TTS --output inference.json
    python tools/benchmark.py inference --dtype bfloat16 --only decode,vocode,batch,streams --slots 1,8,32,128,256,512

Sections: `encode` (speech to tokens), `vocode` (tokens to speech), `prefill` and `decode` (the language model), `batch`
(texts end to end), `streams` (texts that are listened to). They run in the order in which they are named; each prints
what it finds at once, and the JSON is written again after every figure, so that a run that is cut off loses little.

The parts have random weights, of the release's sizes or of the embedded voice's; with `--sizes embedded` the voice
itself speaks in `batch` and `streams`. Random weights never end a speech, so that each has the length of `--seconds`.

Where torch is installed and the data type is float32, PyTorch does the same in turns with ours: transformers' Qwen2 and
wav2vec2, and BiCodec of a checkout of the official repository (`--reference`; it needs einops and einx).

"GB/s" and "TFLOP/s": bytes and operations that are necessary (of the vocoder: bytes that the compiled program moves)
over the time that it took. "At best" is the roofline by the makers' figures, or by what a short measurement of this
device gives, as the first line says.
"""

import importlib.metadata
import importlib.util
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError

SECTIONS = ("encode", "vocode", "prefill", "decode", "batch", "streams")
DTYPES = ("float32", "bfloat16")
KINDS = ("float32", "tf32", "bfloat16")


def inference(
    sizes: Annotated[str, typer.Option(help="release or embedded.")] = "release",
    dtype: Annotated[str, typer.Option(help="Of the language model, and of all of batch and streams.")] = "float32",
    vocoder_dtype: Annotated[
        str, typer.Option(help="Of vocode: some of float32, tf32 and bfloat16. Default: float32 and --dtype.")
    ] = "",
    slots: Annotated[str, typer.Option(help="Of decode.")] = "1,8,32,128",
    only: Annotated[str, typer.Option(help="Sections, in their order.")] = "encode,vocode,prefill,decode,batch",
    rounds: Annotated[int, typer.Option(help="Of each measurement; the figures are medians.", min=1)] = 3,
    reference: Annotated[Path | None, typer.Option(help="Checkout of the official repository.")] = None,
    torch: Annotated[bool, typer.Option(help="Compare with PyTorch, where it is installed.")] = True,
    texts: Annotated[int, typer.Option(help="Of batch.", min=1)] = 200,
    torch_texts: Annotated[int, typer.Option(help="Of them those that PyTorch speaks too.", min=0)] = 1,
    seconds: Annotated[float, typer.Option(help="Of each speech and recording.")] = 10.0,
    batch_slots: Annotated[int, typer.Option(help="Of batch and streams.", min=1)] = 16,
    block: Annotated[int, typer.Option(help="Decode steps between two refills.", min=1)] = 8,
    capacity: Annotated[int, typer.Option(help="Tokens that a slot has room for.")] = 1024,
    context: Annotated[int, typer.Option(help="Tokens of the prompts of decode.", min=1)] = 264,
    prompt_tokens: Annotated[int, typer.Option(help="Of the prompts of prefill.", min=1)] = 96,
    prompts: Annotated[str, typer.Option(help="Read together in prefill.")] = "1,8",
    vocoder_rows: Annotated[str, typer.Option(help="Vocoded together in vocode.")] = "1",
    streams: Annotated[str, typer.Option(help="Numbers of streams that begin at once.")] = "1,16",
    latency: Annotated[str, typer.Option(help="Of streams: exact or low.")] = "exact",
    parts: Annotated[str, typer.Option(help="Tokens of the parts of a stream; each compiles.")] = "12,24,48,96",
    output: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of them; needs the extra `plots`.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Folder for profiles of decode blocks.")] = None,
) -> None:
    """Encode, vocode, prefill, decode and whole speech: rates, rooflines, and the same in PyTorch."""
    options = dict(locals())
    try:
        if sizes not in ("release", "embedded"):
            raise SparkError(f"--sizes is {sizes!r}, expected release or embedded")
        passed = measure(options, sizes)
    except SparkError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(0 if passed else 1)


def measure(options: dict[str, Any], sizes: str | SparkConfig) -> bool:
    """Runs the sections; returns whether all of them could be measured.

    Args:
      options: of the command.
      sizes: "release", "embedded", or any others.

    Raises:
      SparkError: an option is out of range.
    """
    import inference_programs
    import inference_speech
    from inference_programs import Bench
    from inference_report import Report, draw
    from inference_subject import Subject, quiet
    from inference_timing import Compiler, machine, peak

    from spark_jax.shared import compilation_cache

    chosen = _words("--only", options["only"], SECTIONS)
    dtype = _words("--dtype", options["dtype"], DTYPES)[0]
    kinds = _words("--vocoder-dtype", options["vocoder_dtype"] or f"float32,{dtype}", KINDS)
    numbers = {name: _numbers(name, options[name]) for name in ("slots", "prompts", "vocoder_rows", "streams", "parts")}
    quiet()
    compilation_cache.enable()
    seconds, rounds = options["seconds"], options["rounds"]
    subject = Subject(
        sizes,
        dtype,
        slots=options["batch_slots"],
        block=options["block"],
        capacity=options["capacity"],
        parts=tuple(numbers["parts"]),
        seconds=seconds,
    )
    bench = Bench(subject, rounds, _torch(options["torch"]), options["reference"], Compiler())
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    report = Report(plain, options["output"])
    for line in (_about(machine()), _peaks(peak, dtype, kinds), _comparison(bench, dtype)):
        report.say(line + "\n")
    sections: dict[str, Callable[[], Iterator[Any]]] = {
        "encode": lambda: inference_programs.encode(bench, seconds),
        "vocode": lambda: inference_programs.vocode(bench, seconds, kinds, numbers["vocoder_rows"]),
        "prefill": lambda: inference_programs.prefill(bench, options["prompt_tokens"], numbers["prompts"]),
        "decode": lambda: inference_programs.decode(bench, options["context"], numbers["slots"], options["trace"]),
        "batch": lambda: inference_speech.batch(bench, report.measurements, options["texts"], options["torch_texts"]),
        "streams": lambda: inference_speech.streams(bench, numbers["streams"], options["latency"]),
    }
    for name in chosen:
        try:
            for found in sections[name]():
                if name == "streams":
                    report.add_streams(*found)
                else:
                    report.add(found)
        except Exception as error:  # one section must not cost the figures of the others
            traceback.print_exc()
            report.fail(name, f"{type(error).__name__}: {error}")
    if options["plot"] is not None:
        draw(report.measurements, report.streams, options["plot"])
    return not report.failures


def _torch(wanted: bool) -> Any:
    """Returns PyTorch's side; None: it is not wanted, or not installed."""
    if not wanted or importlib.util.find_spec("torch") is None:
        return None
    import torch_inference

    torch_inference.use_threads(os.cpu_count() or 1)
    return torch_inference


def _about(machine: dict[str, Any]) -> str:
    return (
        f"{machine['device']} ({machine['platform']}), {machine['cores']} cores, load average {machine['load']}; "
        f"jax {machine['jax']}; {machine['date']} UTC"
    )


def _peaks(peak: Callable[[str], Any], dtype: str, kinds: list[str]) -> str:
    found = {kind: peak(kind) for kind in dict.fromkeys([dtype, *kinds])}
    return "Roofline: " + "; ".join(
        f"{kind} {own.bandwidth / 1e9:,.4g} GB/s, {own.flops / 1e12:,.3g} TFLOP/s ({own.source})"
        for kind, own in found.items()
    )


def _comparison(bench: Any, dtype: str) -> str:
    if bench.torch is None:
        return "Without PyTorch."
    version = importlib.metadata.version("torch")
    llm = "the language model" if dtype == "float32" else "no language model, which is not in float32"
    codec = "the codec" if bench.reference is not None else "no codec (--reference is missing)"
    return f"PyTorch {version} beside ours: {llm}; {codec}."


def _words(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    if wrong := [word for word in words if word not in known]:
        raise SparkError(f"{option} has {wrong[0]!r}, expected some of {', '.join(known)}")
    return sorted(words, key=known.index) if known == KINDS else words


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise SparkError(f"--{option.replace('_', '-')} is {text!r}, expected whole numbers from 1, such as 1,8")
    return numbers
