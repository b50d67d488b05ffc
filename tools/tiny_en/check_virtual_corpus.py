"""Listen to a corpus of virtual speakers by numbers: words, pitch, level, for each kind of utterance.

    python tools/tiny_en/check_virtual_corpus.py CORPUS --count 40

Draws utterances of each kind and prints a table: word error rate of Whisper tiny.en, what Praat measures of pitch
beside what the corpus says (median ratio of the means and its spread, share of tokens on whose voicing both agree,
median distance in semitones), the loudest sample and the share of utterances quieter than -45 dB. Needs the extras
`corpus` and `evaluation`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from corpus_measures import praat_pitch
from pitch_track import TOKEN_SECONDS

from spark_jax.data.corpus_audio import read_audio
from spark_jax.data.manifest import read_corpus
from spark_jax.data.pitch_tracks import PitchTracks
from spark_jax.errors import ends_with_a_line
from spark_jax.evaluation.judges.recognizer import WhisperRecognizer
from spark_jax.evaluation.metrics import word_errors

SAMPLE_RATE = 16_000
QUIET = 10 ** (-45 / 20)

Record = dict[str, Any]
KINDS: dict[str, Callable[[Record], bool]] = {
    "source": lambda r: r["kind"] == "source" and r["engine"] == "heart",
    "named female": lambda r: r["kind"] == "named" and r["gender"] == "female",
    "named male": lambda r: r["kind"] == "named" and r["gender"] == "male",
    "random female": lambda r: r["kind"] == "random" and r["gender"] == "female" and r["engine"] == "heart",
    "random male": lambda r: r["kind"] == "random" and r["gender"] == "male" and r["engine"] == "heart",
    "slow, 1.3 to 1.6": lambda r: r["duration_factor"] >= 1.3,
    "held-out speakers": lambda r: r["kind"] == "held_out",
    "joe": lambda r: r["engine"] == "joe" and r["kind"] == "source",
    "flite": lambda r: r["engine"] not in ("heart", "joe") and r["kind"] == "source",
    "other engines, random": lambda r: r["engine"] != "heart" and r["kind"] == "random",
}


def judge(records: Sequence[Record], tracks: PitchTracks, recognizer: WhisperRecognizer) -> dict[str, float]:
    """Measures utterances of one kind; returns the numbers by name."""
    heard, ratios, agreement, distances, peaks, levels = [], [], [], [], [], []
    for record in records:
        samples, track = read_audio(record["wav_path"], SAMPLE_RATE), tracks.read(record)
        heard.append(recognizer.transcribe(samples))
        found = praat_pitch(samples, SAMPLE_RATE, (np.arange(len(track)) + 0.5) * TOKEN_SECONDS)
        both = (found > 0) & (track > 0)
        agreement.append(np.mean((found > 0) == (track > 0)))
        peaks.append(np.abs(samples).max())
        levels.append(np.sqrt(np.mean(np.square(samples))))
        if both.any():
            difference = 12 * np.log2(found[both] / track[both])
            ratios.append(2 ** (np.mean(difference) / 12))
            distances.append(np.median(np.abs(difference)))
    errors = word_errors([record["text"] for record in records], heard)
    return {
        "n": len(records),
        "wer": errors.rate,
        "f0_ratio": float(np.median(ratios)),
        "f0_ratio_deviation": float(np.std(ratios)),
        "voicing_agreement": float(np.mean(agreement)),
        "f0_semitones": float(np.median(distances)),
        "peak": float(np.max(peaks)),
        "quiet": float(np.mean(np.array(levels) < QUIET)),
    }


@ends_with_a_line()
def main(
    corpus: Annotated[Path, typer.Argument(help="folder of make_virtual_corpus.py")],
    count: Annotated[int, typer.Option(min=1, help="utterances of each kind")] = 40,
    seed: Annotated[int, typer.Option(help="of the draw")] = 0,
) -> None:
    """Judges utterances of each kind and prints one JSON line for each."""
    records, tracks, recognizer = read_corpus(corpus, None), PitchTracks(corpus), WhisperRecognizer(threads=1)
    for name, belongs in KINDS.items():
        chosen = [record for record in records if belongs(record)]
        rng = np.random.default_rng(seed)
        chosen = [chosen[i] for i in rng.permutation(len(chosen))[:count]]
        if chosen:
            print(json.dumps({"kind": name, **judge(chosen, tracks, recognizer)}), flush=True)


if __name__ == "__main__":
    typer.run(main)
