"""Commands that speak and listen: synthesize, voice, encode and decode."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.cli.options import (
    AudioFormat,
    ModelOption,
    OutputAudio,
    OutputJson,
    Transcript,
    check_input_files,
    check_output_audio,
    check_output_file,
    say,
)
from spark_jax.errors import SparkError
from spark_jax.shared.files import decode_text, read_text
from spark_jax.text.reading import check_text

MODELS_OWN = "Default: the model's own, the release's"
LEVELS = "very_low, low, moderate, high or very_high"


def synthesize(
    output: OutputAudio,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to say.")] = None,
    text_file: Annotated[
        Path | None,
        typer.Option("--text-file", metavar="FILE", help="What to say, in a UTF-8 file; -: from standard input."),
    ] = None,
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
        typer.Option(help="At most this much speech. Default: 60 for a piece of the text, or what the context holds."),
    ] = None,
    normalize: Annotated[
        str,
        typer.Option(
            metavar="auto|on|off",
            help="Whether numbers, dates, abbreviations and the like are put into words first. Default: as the model "
            "was trained: on for the embedded voice, off for converted weights.",
        ),
    ] = "auto",
    format: AudioFormat = None,
) -> None:
    """Speak TEXT, or a text file.

    "[pause 0.5s]" in the text is a pause. A text that begins with a dash comes last, after "--".

    The voice is that of --voice, of --reference, or made up for --gender; without any of them it is the
    model's default voice.
    """
    from spark_jax.inference.request import Request

    request = Request(
        text=_text(text, text_file),
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
        normalize=normalize,
    )
    output = check_output_audio(output, format)
    check_input_files(voice, reference)
    _check_length(reference, transcript)
    tts = _load(model, "bicodec", "wav2vec2", "llm")
    start = time.perf_counter()
    audio = tts.speak(request)
    audio.save(output, format)
    seconds = len(audio.samples) / audio.sample_rate
    say(f"{output}: {seconds:.2f} s of speech in {time.perf_counter() - start:.2f} s", output)


def voice(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="A recording of the voice.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.json", help="Where the voice goes; - is standard output.")
    ],
    transcript: Transcript = None,
    model: ModelOption = None,
) -> None:
    """Keep the voice of a recording in a file, for `synthesize --voice`.

    With --transcript the recording's own speech becomes part of every prompt and is continued, which is often
    closer to the speaker; without it only the speaker's tokens are used.
    """
    if transcript is not None:
        check_text("transcript", transcript, "what the reference says")
    output = check_output_file(output)
    check_input_files(reference)
    _check_length(reference, transcript)
    tts = _load(model, "bicodec", "wav2vec2")
    tts.voice(reference, transcript).save(output, tts.config.sample_rate)
    say(f"{output}: the voice of {reference}", output)


def encode(
    recording: Annotated[Path, typer.Argument(metavar="AUDIO", help="A recording of speech.")],
    output: OutputJson,
    model: ModelOption = None,
) -> None:
    """Turn a recording into tokens: the speaker's, and one for every 20 ms of speech."""
    from spark_jax.model_directory.voice import save_tokens

    output = check_output_file(output)
    check_input_files(recording)
    tts = _load(model, "bicodec", "wav2vec2")
    [(global_ids, semantic_ids)] = tts.codec.encode_files([recording])
    save_tokens(output, global_ids, semantic_ids, tts.config.sample_rate)
    say(f"{output}: {len(global_ids)} global and {len(semantic_ids)} semantic tokens", output)


def decode(
    tokens: Annotated[Path, typer.Argument(metavar="TOKENS.json", help="A file made by `spark-jax encode`.")],
    output: OutputAudio,
    model: ModelOption = None,
    format: AudioFormat = None,
) -> None:
    """Turn tokens back into speech."""
    from spark_jax.audio.write import write_audio
    from spark_jax.model_directory.voice import load_tokens

    output = check_output_audio(output, format)
    check_input_files(tokens)
    tts = _load(model, "bicodec")
    samples = tts.decode(*load_tokens(tokens, tts.config))
    write_audio(output, samples, tts.config.sample_rate, format)
    say(f"{output}: {len(samples) / tts.config.sample_rate:.2f} s", output)


def _check_length(reference: Path | None, transcript: str | None) -> None:
    if reference is not None and transcript is not None:
        from spark_jax.audio.reference import check_length

        check_length(reference)


def _text(text: str | None, file: Path | None) -> str:
    """Returns what to say: the argument, or what a file or standard input holds."""
    if (text is None) == (file is None):
        what = "no text" if text is None else "a TEXT and a --text-file"
        raise SparkError(
            f"{what}: give one of TEXT and --text-file FILE; a text that begins with a dash comes after --"
        )
    if file is None:
        return text
    if str(file) != "-":
        return read_text(file, "text")
    return decode_text(sys.stdin.buffer.read(), "standard input")


def _load(directory: Path | None, *parts: str):
    from spark_jax.inference.synthesize import SparkTTS

    return SparkTTS.load(directory, parts)
