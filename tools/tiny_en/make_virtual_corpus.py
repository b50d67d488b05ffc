"""Speak sentences with many virtual speakers into a corpus with pitch tracks and phoneme times.

    python tools/tiny_en/make_virtual_corpus.py OUT_DIR --jobs 2
    python tools/tiny_en/make_virtual_corpus.py OUT_DIR --publish   # metadata of what is done so far

Every sentence is spoken by hibari-tts, twice: unmodified, as one of sixteen named speakers or as a random one; some
also by another engine (`corpus_plan`). Finished utterances go into OUT_DIR/journal.jsonl: a killed run continues.
Sentences come in an order of their own, those of frequent words first, so that what is done at any time is a corpus:
OUT_DIR/metadata.jsonl (sorted by index), f0.npy and summary.json are written every 500 sentences and at the end.

A record has, beside make_corpus.py's fields, `kind` ("source", "named", "random", "held_out"), `engine`, the
speaker's name in `speaker` and `voice`, the speaker's numbers in `formant`, `f0_mean` (geometric, Hz), `f0_range`,
`tilt`, `breath` and `duration_factor`, `phonemes` with their `phoneme_bounds` in seconds, and the place of its pitch
track in f0.npy (`f0_start`, `f0_frames`: tenths of a hertz, one for every 20 ms, 0 where unvoiced).
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import corpus_plan
import numpy as np
import typer
import world_speech
from align_corpus import Aligner
from corpus_audio import MAX_SYLLABLES_PER_SECOND, SAMPLE_RATE, limit_peak, to_stored_rate, trim, write_flac
from corpus_journal import publish, read_journal
from corpus_measures import Syllables, speech_span
from corpus_plan import FORMANTS, OTHERS, SOURCE, Take
from corpus_sentences import CorpusError, frequent_first, wordnet_sentences
from corpus_voices import Voice, open_voice
from corpus_workers import results
from pitch_track import UNIT, pitch_track
from transfer_bounds import transfer_bounds
from voicing_shift import settle_bounds

from spark_jax.errors import SparkError

WORDNET = Path("/usr/share/wordnet")
LENGTHS = (15, 70)  # characters
MIN_WORDS = 3
PUBLISH_EVERY = 500  # sentences
PLAN_VERSION = 2  # of what a corpus is made by; another one continues no folder


@dataclasses.dataclass(frozen=True)
class Spoken:
    """An engine's own speech, taken apart, its phonemes (the source's) and when they are spoken, in seconds."""

    speech: world_speech.Speech
    phonemes: str
    bounds: list[float]


class SentenceSpeaker:
    """What one worker process holds: speaks the takes of one sentence, writes their audio, returns their rows."""

    def __init__(self, out: Path, others: Sequence[str]):
        self.out, self.others = out, others
        self.voices: dict[str, Voice] = {}
        self.syllables, self.aligner = Syllables(), Aligner(threads=1)

    def __call__(self, item: tuple[int, str]) -> list[dict[str, Any]]:
        number, text = item
        rows, spoken = [], {}
        for take in corpus_plan.takes(text, self.others):
            index = row_index(number, take.version)
            try:
                if take.engine not in spoken:
                    spoken[take.engine] = self._speak(take.engine, number, text, spoken.get(SOURCE))
                rows.append(self._take(index, number, text, take, spoken[take.engine]))
            except SparkError as error:
                rows.append({"index": index, "dropped": "no phoneme times", "text": text, "error": str(error)})
            except Exception as error:  # an engine that fails on one sentence must not end the corpus
                rows.append({"index": index, "dropped": "engine failed", "text": text, "error": repr(error)})
        return rows

    def _voice(self, engine: str) -> Voice:
        if engine not in self.voices:
            self.voices[engine] = open_voice(engine)
        return self.voices[engine]

    def _speak(self, engine: str, number: int, text: str, source: Spoken | None) -> Spoken | None:
        """The engine's own speech; None where there is none, or none whose phonemes' times can be known."""
        voice = self._voice(engine)
        samples, _ = trim(voice.speak(text, seed=number, speed=1.0), voice.sample_rate)
        if not len(samples) or (source is None and engine != SOURCE):
            return None
        speech = world_speech.analyze(samples, voice.sample_rate, fundamental=engine == SOURCE)
        voiced = speech.contour > 0
        if not voiced.any():
            return None
        if engine == SOURCE:
            phonemes = voice.phonemes(text)
            bounds = self.aligner.bounds(phonemes)
        else:
            phonemes = source.phonemes
            bounds = transfer_bounds(source.bounds, source.speech, speech, FORMANTS[engine] / FORMANTS[SOURCE])
        return Spoken(speech, phonemes, settle_bounds(bounds, phonemes, voiced, world_speech.FRAME_SECONDS))

    def _take(self, index: str, number: int, text: str, take: Take, spoken: Spoken | None) -> dict[str, Any]:
        if spoken is None:
            return {"index": index, "dropped": "silent or unvoiced", "text": text}
        speech = spoken.speech
        if take.speaker is None:
            samples, contour = speech.samples, speech.contour
        else:
            samples, contour = world_speech.speak_as(speech, take.speaker, take.duration, FORMANTS[take.engine])
        samples = limit_peak(to_stored_rate(samples, speech.sample_rate))
        start, end = speech_span(samples, SAMPLE_RATE)
        speed = self.syllables.count(text) * SAMPLE_RATE / max(end - start, 1)
        if speed > MAX_SYLLABLES_PER_SECOND:
            return {"index": index, "dropped": "too fast", "text": text}
        tokens = math.ceil(len(samples) * 50 / SAMPLE_RATE)
        track = pitch_track(contour, world_speech.FRAME_SECONDS * take.duration, tokens)
        wav_path = Path("audio") / f"{number // 500:03d}" / f"{index}.flac"
        write_flac(self.out / wav_path, samples)
        voiced = track[track > 0] * UNIT
        return {
            "index": index,
            "split": corpus_plan.split(text),
            "kind": take.kind,
            "engine": take.engine,
            **speaker_fields(take, self._voice(take.engine), speech.contour),
            "language": "en",
            "age": "adult",
            "emotion": "neutral",
            "pitch": round(float(voiced.mean()), 2) if len(voiced) else 0.0,
            "pitch_std": round(float(voiced.std()), 2) if len(voiced) else 0.0,
            "speed": round(speed, 3),
            "duration": round(len(samples) / SAMPLE_RATE, 4),
            "speech_duration": round((end - start) / SAMPLE_RATE, 4),
            "syllable_num": self.syllables.count(text),
            "text": text,
            "wav_path": wav_path.as_posix(),
            "phonemes": spoken.phonemes,
            "phoneme_bounds": [round(second * take.duration, 3) for second in spoken.bounds],
            "f0": track.tolist(),
        }


def speaker_fields(take: Take, voice: Voice, contour: world_speech.Contour) -> dict[str, Any]:
    """Returns the numbers of who speaks a take; for an unmodified engine they are measured or defined."""
    if take.speaker is None:
        mean = float(np.exp(np.mean(np.log(contour[contour > 0]))))
        numbers = (FORMANTS[take.engine], round(mean, 2), 1.0, 0.0, 0.0)
        name, gender = voice.name, voice.gender
    else:
        speaker = take.speaker
        numbers = (speaker.formant, speaker.pitch, speaker.range, speaker.tilt, speaker.breath)
        name, gender = speaker.name, speaker.gender
    names = ("formant", "f0_mean", "f0_range", "tilt", "breath")
    # The readers of a corpus group utterances by `voice`.
    fields = {"speaker": name, "voice": name, "gender": gender, **dict(zip(names, numbers, strict=True))}
    return fields | {"duration_factor": take.duration}


def row_index(number: int, version: int) -> str:
    """Returns the index of a take of a sentence."""
    return f"{number:06d}-{version}"


def publish_with_tracks(out: Path, rows: Mapping[str, dict], settings: dict) -> dict:
    """Publishes rows as `publish` does, with all their pitch tracks in f0.npy instead of in the records."""
    tracks, published, start = [], {}, 0
    for index in sorted(rows):
        row = dict(rows[index])
        if "dropped" not in row:
            track = row.pop("f0")
            tracks.append(np.asarray(track, np.uint16))
            row |= {"f0_start": start, "f0_frames": len(track)}
            start += len(track)
        published[index] = row
    part = out / f"f0.{os.getpid()}.part"
    with part.open("wb") as file:
        np.save(file, np.concatenate(tracks) if tracks else np.zeros(0, np.uint16))
    os.replace(part, out / "f0.npy")
    return publish(out, published, settings)


def make_corpus(out: Path, sentences: Sequence[str], others: Sequence[str], jobs: int) -> dict:
    """Speaks the sentences into `out` and returns the summary; continues what an earlier run left."""
    from tqdm import tqdm

    for engine in (SOURCE, *others):
        open_voice(engine)  # a missing engine is reported here, once, not by every worker
    settings = corpus_settings(sentences, others)
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "journal.jsonl"
    rows = read_journal(journal, settings)
    items = [
        item
        for item in enumerate(sentences)
        if any(row_index(item[0], take.version) not in rows for take in corpus_plan.takes(item[1], others))
    ]
    if items:
        with journal.open("a", encoding="utf-8") as file:
            done = results(SentenceSpeaker, (out, others), items, jobs)
            progress = tqdm(done, total=len(sentences), initial=len(sentences) - len(items), unit="sentence")
            for count, finished in enumerate(progress, 1):
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in finished))
                file.flush()
                rows |= {row["index"]: row for row in finished}
                if count % PUBLISH_EVERY == 0:
                    publish_with_tracks(out, rows, settings)
    return publish_with_tracks(out, rows, settings)


def corpus_settings(sentences: Sequence[str], others: Sequence[str]) -> dict[str, Any]:
    """Returns the settings that a journal is begun with; it is never continued with others."""
    digest = hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16]
    return {"sentences": digest, "others": list(others), "plan": PLAN_VERSION}


def check_others(names: str) -> tuple[str, ...]:
    """Parses a comma-separated list of engines.

    Raises:
      CorpusError: one is unknown, or named twice.
    """
    others = tuple(name for name in names.split(",") if name)
    for name in others:
        if name not in OTHERS or others.count(name) > 1:
            raise CorpusError(f"--others: {name!r}, expected each once of {', '.join(OTHERS)}")
    return others


def main(
    out: Annotated[Path, typer.Argument(help="the corpus folder; an unfinished one is continued")],
    text: Annotated[Path | None, typer.Option(help="one sentence a line, instead of WordNet")] = None,
    wordnet: Annotated[Path, typer.Option(help="folder of WordNet's data files")] = WORDNET,
    min_word_counts: Annotated[str, typer.Option(help="how often words occur, most frequent sentences first")] = "3,2",
    others: Annotated[str, typer.Option(help="engines beside hibari-tts")] = ",".join(OTHERS),
    limit: Annotated[int, typer.Option(help="at most so many sentences, 0: all")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    publish: Annotated[bool, typer.Option(help="only write the metadata of what is done")] = False,
) -> None:
    """Speak sentences with many virtual speakers."""
    try:
        if text is not None and not text.is_file():
            raise CorpusError(f"{text}: no such text file")
        raw = wordnet_sentences(wordnet) if text is None else text.read_text(encoding="utf-8").splitlines()
        if not all(count.isdecimal() for count in min_word_counts.split(",")):
            raise CorpusError(f"--min-word-counts: {min_word_counts!r}, expected whole numbers between commas")
        counts = [int(count) for count in min_word_counts.split(",")]
        sentences = frequent_first(raw, *LENGTHS, MIN_WORDS, counts)
        sentences = sentences[:limit] if limit else sentences
        if not sentences:
            raise CorpusError(f"no sentence of {len(raw)} is left; relax --min-word-counts")
        engines = check_others(others)
        if publish:
            settings = corpus_settings(sentences, engines)
            if not (out / "journal.jsonl").exists():
                raise CorpusError(f"{out}: no journal.jsonl to publish")
            summary = publish_with_tracks(out, read_journal(out / "journal.jsonl", settings, mend=False), settings)
        else:
            summary = make_corpus(out, sentences, engines, jobs)
        typer.echo(json.dumps(summary, indent=2))
    except CorpusError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
