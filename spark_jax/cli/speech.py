"""Commands that speak and listen: synthesize, voice, encode and decode."""

import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from spark_jax.inference.long_text import Span
    from spark_jax.inference.stream import SpeechStream
    from spark_jax.inference.word_times import WordAligner

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
    retries: Annotated[
        int,
        typer.Option(
            help="How often a piece of the text whose speech fails a check is spoken again; the best try is kept."
        ),
    ] = 2,
    subtitles: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="When each piece of the text is heard: .srt, .vtt or .json; each word, if the model has a recognizer.",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Write while it is spoken: a .wav that grows, or 16-bit samples without a header to .pcm or to "
            "standard output. Needs no more memory for long texts.",
        ),
    ] = False,
    latency: Annotated[
        str,
        typer.Option(
            metavar="exact|low",
            help="Of --stream. exact: the speech is the same as without; low: it begins earlier, and is nearly so.",
        ),
    ] = "exact",
    format: AudioFormat = None,
) -> None:
    """Speak TEXT, or a text file.

    "[pause 0.5s]" in the text is a pause. A text that begins with a dash comes last, after "--".

    The voice is that of --voice, of --reference, or made up for --gender; without any of them it is the
    model's default voice.
    """
    from spark_jax.inference.request import Request
    from spark_jax.inference.subtitles import check_subtitles, write_subtitles

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
        retries=retries,
    )
    output = check_output_audio(output, format) if not stream else _check_stream(output, format, latency)
    if subtitles is not None:
        check_subtitles(check_output_file(subtitles))
    check_input_files(voice, reference)
    _check_length(reference, transcript)
    recognizer = ["recognizer"] if subtitles is not None and _has_recognizer(model) else []
    tts = _load(model, "bicodec", "wav2vec2", "llm", *recognizer, slots=1 if stream else None)
    aligner = tts.aligner if recognizer else None
    start = time.perf_counter()
    if stream:
        seconds, spans = _stream(tts.stream(request, latency), output, aligner)
    else:
        audio = tts.speak(request)
        audio.save(output, format)
        seconds = len(audio.samples) / audio.sample_rate
        spans = (audio if aligner is None else aligner.align(audio)).spans
    if subtitles is not None:
        write_subtitles(subtitles, spans, tts.config.sample_rate)
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


def _check_stream(output: Path, format: str | None, latency: str) -> Path:
    """Checks where a stream goes, before the model is loaded."""
    from spark_jax.audio.growing import check_growing
    from spark_jax.inference.parts import check_latency

    if format is not None:
        raise SparkError("--format does not go with --stream: that writes .wav, .pcm, or samples to standard output")
    check_latency(latency)
    output = check_output_file(output)
    check_growing(output)
    return output


def _stream(stream: "SpeechStream", output: Path, aligner: "WordAligner | None") -> "tuple[float, Sequence[Span]]":
    """Writes speech while it is made; returns its seconds, and where each piece is heard."""
    from spark_jax.audio.growing import GrowingAudio
    from spark_jax.inference.word_times import StreamAligner

    samples, aligned = 0, StreamAligner(aligner)
    with stream:
        chunk = next(stream, None)  # before a file is opened: the request may be wrong
        with GrowingAudio(output, stream.sample_rate) as file:
            while chunk is not None:
                file.write(chunk.samples)
                samples += len(chunk.samples)
                aligned.push(chunk, stream.spans)
                chunk = next(stream, None)
        aligned.push(None, stream.spans)
    for finding in stream.checks:
        warnings.warn(finding.message, stacklevel=3)
    return samples / stream.sample_rate, aligned.spans


def _has_recognizer(directory: Path | None) -> bool:
    from spark_jax.inference.codec import EMBEDDED_VOICE
    from spark_jax.model_directory.directory import stored_parts

    return "recognizer" in stored_parts(EMBEDDED_VOICE if directory is None else directory)


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


def _load(directory: Path | None, *parts: str, slots: int | None = None):
    from spark_jax.inference.engine import EngineSettings
    from spark_jax.inference.synthesize import SparkTTS

    return SparkTTS.load(directory, parts, engine=EngineSettings() if slots is None else EngineSettings(slots=slots))
