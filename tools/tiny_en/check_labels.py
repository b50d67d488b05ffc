"""Makes the labels of utterances those that are heard, and takes away what is not, for a language model to learn from.

    python tools/tiny_en/check_labels.py runs/tokens.jsonl runs/tokens_checked.jsonl --corpus corpus --codec runs/wave

A virtual man of 180 Hz with short formants is one by definition alone: the judge of gender, which was fitted to
recordings of men and women, takes half of the corpus's men above 165 Hz for women. An utterance whose gender it doubts
has none then. One whose speed is at the boundary of two levels is heard as often at the one as at the other: its speed
goes. And voices that say much lose their gender: asked for a voice near one of them, the model would give that one.
All of these stay for cloning, and are no examples of a voice that is asked for. The others get the pitch at which the
codec speaks their tokens. TOKENS is of `spark-jax prepare encode`. Needs the extra `evaluation`.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from corpus_measures import is_between_levels
from corpus_workers import results
from spoken_pitch import spoken_pitch
from tqdm import tqdm

from spark_jax.data import manifest
from spark_jax.data.corpus_audio import read_audio
from spark_jax.errors import ends_with_a_line
from spark_jax.evaluation.judges.base import SAMPLE_RATE, Utterance
from spark_jax.evaluation.judges.gender import GenderJudge
from spark_jax.inference.codec import Codec
from spark_jax.shared import files
from spark_jax.text.attributes import GENDERS

# Outside of these pitches (Hz) the judge has no doubt, whatever the formants of a virtual speaker.
DOUBTFUL = {"male": (115.0, np.inf), "female": (0.0, 200.0)}
SURE = 0.75  # the probability of a gender that is heard: the codec changes a voice a little
FIELDS = ("index", "voice", "gender", "pitch", "speed", "language", "global_ids", "semantic_ids")
MOST = 20  # utterances of a voice that is an example of one that is made up


class Hearer:
    """What a worker process holds: tells how likely a recording is of a man, by its index and path."""

    def __init__(self):
        self._judge = GenderJudge()

    def __call__(self, item: tuple[str, str]) -> tuple[str, float | None]:
        index, path = item
        return index, self._judge.judge(Utterance(read_audio(path, SAMPLE_RATE)))["male"]


def is_doubtful(record: dict[str, Any]) -> bool:
    """Returns whether a record's gender is to be heard; of one without a gender there is nothing to hear."""
    if record["gender"] not in GENDERS:
        return False
    low, high = DOUBTFUL[record["gender"]]
    return low <= record["pitch"] < high


def is_heard(gender: str, male: float | None) -> bool:
    """Returns whether a gender is heard, by the probability of a man; None: no voice is heard."""
    return male is not None and (male if gender == "male" else 1.0 - male) >= SURE


def take_known(records: Sequence[dict[str, Any]]) -> int:
    """Takes the gender from the records of voices that say much, in place; returns of how many."""
    said = Counter(record["voice"] for record in records)
    known = [record for record in records if said[record["voice"]] > MOST]
    for record in known:
        record["gender"] = None
    return len(known)


def take_unheard(records: Sequence[dict[str, Any]], male: Mapping[str, float | None]) -> Counter[str]:
    """Takes labels from records in place, by the probabilities of a man of what was heard; returns how many of each."""
    counts = Counter()
    for record in records:
        if record["index"] in male and not is_heard(record["gender"], male[record["index"]]):
            counts[record["gender"]] += 1
            record["gender"] = None
        if is_between_levels(record["speed"], record["language"]):
            counts["speed"] += 1
            record["speed"] = None
    return counts


@ends_with_a_line()
def main(
    tokens: Annotated[Path, typer.Argument(help="JSON Lines of `spark-jax prepare encode`")],
    output: Annotated[Path, typer.Argument(help="JSON Lines to write")],
    corpus: Annotated[Path, typer.Option(help="folder with metadata.jsonl and the recordings")],
    codec: Annotated[Path, typer.Option(help="model directory or run of a codec with a harmonic source")],
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 2,
) -> None:
    """Make the labels of utterances those that are heard."""
    speaker = Codec.load(codec, parts=("bicodec",))
    records = list(manifest.read_jsonl(tokens, FIELDS))
    paths = {record["index"]: record["wav_path"] for record in manifest.read_corpus(corpus, None)}
    known = take_known(records)
    items = [(record["index"], paths[record["index"]]) for record in records if is_doubtful(record)]
    male = dict(tqdm(results(Hearer, (), items, jobs), total=len(items), unit="utterance", disable=None))
    counts = take_unheard(records, male)
    examples = [record for record in records if record["gender"] is not None]
    for record, pitch in zip(examples, spoken_pitch(speaker, examples), strict=True):
        record["pitch"] = None if pitch is None else round(pitch, 2)
    files.write_text(output, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    genders = ", ".join(f"{counts[gender]} {gender}" for gender in GENDERS)
    print(
        f"{output}: {len(records)} utterances; {known} of voices that say much; of {len(items)} doubtful "
        f"genders {genders} are not heard; {counts['speed']} speeds are between levels"
    )


if __name__ == "__main__":
    typer.run(main)
