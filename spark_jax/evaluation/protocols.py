"""How a voice is measured: which sentences, how each measure gets speech for them, and what a judge hears in it.

The measures are of the original recordings, of their codec resynthesis, and of text-to-speech, so that each tells how
much is lost on the way to the next. What they return is defined in report.py.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile
import soxr
from jaxtyping import Float
from tqdm import tqdm

from spark_jax.config import SparkConfig
from spark_jax.data import manifest
from spark_jax.errors import SparkError
from spark_jax.evaluation.judges.base import SAMPLE_RATE
from spark_jax.evaluation.judges.recognizer import SpeechRecognizer
from spark_jax.evaluation.metrics import word_errors
from spark_jax.evaluation.report import Measured, check_measures
from spark_jax.shared import files

# Fifty sentences that no training of the embedded voice has seen; fixed, so that figures can be compared.
HELD_OUT_SENTENCES = Path(__file__).with_name("held_out_sentences.txt")


@runtime_checkable
class Speaker(Protocol):
    """A voice that can be measured: `inference.synthesize.SparkTTS`, or what stands in for it in tests."""

    config: SparkConfig

    def synthesize(self, text: str, *, seed: int = 0) -> Any:
        """Returns speech: an object with samples, sample_rate and reached_limit."""

    def encode(self, samples: Float[np.ndarray, " time"]) -> tuple[Any, Any]:
        """Returns global and semantic ids of samples at the configuration's sample rate."""

    def decode(self, global_ids: Any, semantic_ids: Any) -> Any:
        """Returns samples at the configuration's sample rate."""


@dataclass(frozen=True)
class Sentence:
    """A text to speak, and its recording where there is one."""

    text: str
    audio: Path | None = None


def choose_sentences(
    metadata: Path | None, split: str, count: int, text_file: Path | None, seed: int
) -> list[Sentence]:
    """Returns the sentences to measure: a seeded draw from a split, or the lines of a text file.

    Args:
      metadata: metadata.jsonl of a corpus, whose recordings the sentences get.
      split: of the corpus, to draw from where there is no text file.
      count: at most so many.
      text_file: one sentence a line; None without metadata: the held-out sentences of this package.
      seed: of the draw.

    Raises:
      SparkError: a file cannot be read, the split is empty, or the corpus lacks a line of the text file.
    """
    if metadata is None:
        return [Sentence(text) for text in read_lines(text_file or HELD_OUT_SENTENCES)[:count]]
    rows = _read_metadata(metadata)
    if text_file is not None:
        wanted = read_lines(text_file)
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


def evaluate_words(
    tts: Speaker,
    judge: SpeechRecognizer,
    sentences: Sequence[Sentence],
    measures: Sequence[str],
    seed: int = 0,
    keep: Path | None = None,
) -> dict[str, Measured]:
    """Returns word errors by measure; without recordings those of text-to-speech alone.

    Args:
      tts: the voice.
      judge: what writes down the speech.
      measures: some of `report.MEASURES`.
      seed: of the synthesis.
      keep: an existing folder for the audio that was judged; None: it is not kept.

    Raises:
      SparkError: a measure is unknown, or a recording cannot be read.
    """
    check_measures(measures)
    if any(sentence.audio is None for sentence in sentences):
        measures = [name for name in measures if name == "tts"]
    cut_off: list[str] = []

    def spoken(sentence: Sentence) -> Float[np.ndarray, " time"]:
        audio = tts.synthesize(sentence.text, seed=seed)
        if audio.reached_limit:
            cut_off.append(sentence.text)
        return _resample(np.asarray(audio.samples), audio.sample_rate)

    def resynthesized(sentence: Sentence) -> Float[np.ndarray, " time"]:
        rate = tts.config.sample_rate
        return _resample(np.asarray(tts.decode(*tts.encode(_read_audio(sentence.audio, rate)))), rate)

    speech = {
        "recording": lambda sentence: _read_audio(sentence.audio, SAMPLE_RATE),
        "codec": resynthesized,
        "tts": spoken,
    }
    results = {name: _measure(name, sentences, speech[name], judge, keep) for name in measures}
    if "tts" in results:
        results["tts"].cut_off.extend(cut_off)
    return results


def _measure(
    name: str,
    sentences: Sequence[Sentence],
    speech: Callable[[Sentence], Float[np.ndarray, " time"]],
    judge: SpeechRecognizer,
    keep: Path | None,
) -> Measured:
    """Returns the word errors of one way to get speech at the judge's sample rate."""
    heard, seconds, wall = [], 0.0, 0.0
    for number, sentence in enumerate(tqdm(sentences, desc=name, unit="sentence")):
        start = time.perf_counter()
        samples = speech(sentence)
        wall += time.perf_counter() - start
        seconds += len(samples) / SAMPLE_RATE
        heard.append(judge.transcribe(samples))
        if keep is not None:
            soundfile.write(keep / f"{number:03d}_{name}.wav", samples, SAMPLE_RATE, subtype="PCM_16")
    texts = [sentence.text for sentence in sentences]
    return Measured(word_errors(texts, heard), seconds, wall, tuple(zip(texts, heard, strict=True)), [])


def read_lines(path: Path) -> list[str]:
    """Returns the sentences of a text file, one a line.

    Raises:
      SparkError: the file cannot be read, or has none.
    """
    lines = [line.strip() for line in files.read_text(path).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise SparkError(f"{path}: has no line of text; expected one sentence a line")
    return lines


def _read_metadata(metadata: Path) -> list[tuple[str, Sentence]]:
    """Returns (split, sentence) of every line."""
    rows = []
    for record in manifest.read_jsonl(metadata, ("split", "text", "wav_path")):
        if wrong := [name for name in ("split", "text", "wav_path") if not isinstance(record[name], str)]:
            raise SparkError(f"{metadata}: {wrong[0]} is {record[wrong[0]]!r}, expected a text")
        rows.append((record["split"], Sentence(record["text"], metadata.parent / record["wav_path"])))
    return rows


def _read_audio(path: Path, sample_rate: int) -> Float[np.ndarray, " time"]:
    """Returns mono float32 samples of a recording."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise SparkError(f"{path}: cannot be read as audio ({error})") from error
    return _resample(samples.mean(axis=1), rate, sample_rate)


def _resample(
    samples: Float[np.ndarray, " time"], rate: int, wanted: int = SAMPLE_RATE
) -> Float[np.ndarray, " resampled"]:
    return samples if rate == wanted else soxr.resample(samples, rate, wanted, quality="VHQ")
