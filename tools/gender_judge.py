"""Fits the judge of gender to the recordings of Peterson and Barney (1952), and tries it on others.

    python tools/gender_judge.py --speaker male:FOLDER --speaker female:FOLDER …   # writes judges/gender.json
    python tools/gender_judge.py --check female:FOLDER --check male:FOLDER

The measures of the vowels of 33 men and 28 women come with Praat (package praat-parselmouth, extra `evaluation`). They
are single words, which are spoken higher than sentences; so recordings of sentences are added, one folder a speaker,
and count as much in all, as much for each gender. The coefficients of the package are of these speakers: man of
apt pocketsphinx-testdata (LibriVox, 5 clips), woman of apt asterisk-core-sounds-en-g722 (19 prompts), and apt flite's
men rms, awb and kal16 and woman slt (voices made of recordings; 4 sentences each).

With --check nothing is written: the judge hears every sound file of a folder whose speakers are of one gender.
"""

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.optimize
import typer

from spark_jax.audio.load import load_audio
from spark_jax.errors import SparkError, ends_with_a_line
from spark_jax.evaluation.judges.base import SAMPLE_RATE, Utterance
from spark_jax.evaluation.judges.gender import COEFFICIENTS, FORMANTS, GenderJudge, probability, speaker_features
from spark_jax.shared import files
from spark_jax.text.attributes import GENDERS

RIDGE = 0.01  # weight of the squared coefficients beside the mean loss: the speakers are nearly separable


def read_speakers() -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Returns F0 and formants of every adult's vowels, by (gender, number of the speaker)."""
    import parselmouth

    table = parselmouth.praat.call("Create formant table (Peterson & Barney 1952)")
    lines = io.StringIO(parselmouth.praat.call(table, "List", False)).read().splitlines()
    names = lines[0].split("\t")
    found: dict[tuple[str, str], list[list[float]]] = {}
    for line in lines[1:]:
        row = dict(zip(names, line.split("\t"), strict=True))
        if row["Type"] in ("m", "w"):  # the third is c, child
            gender = "male" if row["Type"] == "m" else "female"
            values = [float(row[name]) for name in ("F0", *(f"F{number}" for number in range(1, FORMANTS + 1)))]
            found.setdefault((gender, row["Speaker"]), []).append(values)
    arrays = {key: np.array(rows) for key, rows in found.items()}
    return {key: (rows[:, 0], rows[:, 1:]) for key, rows in arrays.items()}


def folder_features(folder: Path) -> np.ndarray:
    """Returns the mean features of the recordings of one speaker."""
    judge = GenderJudge()
    found = [judge.features(load_audio(path, SAMPLE_RATE)) for path in sorted(folder.iterdir())]
    return np.mean([features for features in found if features is not None], axis=0)


def fit(features: np.ndarray, male: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Returns the coefficients of a weighted ridge logistic regression; see `gender.probability`."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scaled = (features - mean) / deviation

    def loss(parameters: np.ndarray) -> float:
        score = scaled @ parameters[:2] + parameters[2]
        return float(np.sum(weights * (np.logaddexp(0.0, score) - male * score)) + RIDGE * np.sum(parameters[:2] ** 2))

    found = scipy.optimize.minimize(loss, np.zeros(3), method="BFGS").x
    coefficients = {"mean": mean, "deviation": deviation, "weights": found[:2]}
    rounded = {name: [round(float(value), 4) for value in values] for name, values in coefficients.items()}
    return rounded | {"bias": round(float(found[2]), 4), "speakers": len(features)}


def check(gender: str, folder: Path) -> str:
    """Returns what the judge hears in a folder, as one line."""
    judge, paths = GenderJudge(), sorted(path for path in folder.rglob("*") if path.is_file())
    heard, male = [], []
    for path in paths:
        try:
            found = judge.judge(Utterance(load_audio(path, SAMPLE_RATE)))
        except SparkError:
            continue  # no audio
        heard.append(found["gender"])
        male += [found["male"]] if found["male"] is not None else []
    right, silent = heard.count(gender), heard.count(None)
    share = f"{right / len(heard):.1%}" if heard else "nothing"
    median = f"{np.median(male):.3f}" if male else "-"
    return f"{folder}: {share} of {len(heard)} {gender}, {silent} without a voice, median probability male {median}"


def parse(items: list[str] | None, option: str) -> list[tuple[str, Path]]:
    """Returns gender and folder of each value of an option."""
    pairs = [(item.partition(":")[0], Path(item.partition(":")[2])) for item in items or []]
    for gender, folder in pairs:
        if gender not in GENDERS or not folder.is_dir():
            raise SparkError(f"{option} {gender}:{folder}: expected female:FOLDER or male:FOLDER")
    return pairs


@ends_with_a_line()
def main(
    speaker: Annotated[
        list[str] | None, typer.Option(metavar="GENDER:FOLDER", help="recordings of one more speaker to fit to")
    ] = None,
    checks: Annotated[
        list[str] | None, typer.Option("--check", metavar="GENDER:FOLDER", help="recordings to try the judge on")
    ] = None,
) -> None:
    """Fits the coefficients and writes them, or tries the judge on recordings."""
    for gender, folder in parse(checks, "--check"):
        print(check(gender, folder), flush=True)
    if checks:
        return
    vowels, sentences = read_speakers(), parse(speaker, "--speaker")
    features = [speaker_features(*values) for values in vowels.values()]
    features = np.array(features + [folder_features(folder) for _, folder in sentences])
    male = np.array([gender == "male" for gender, _ in [*vowels, *sentences]], float)
    weights = np.zeros(len(male))
    kinds = np.arange(len(male)) < len(vowels)
    for kind in (kinds, ~kinds):
        for gender in (0.0, 1.0):
            group = kind & (male == gender)
            weights[group] = 1.0 / max(group.sum(), 1)
    coefficients = fit(features, male, weights / weights.sum())
    files.write_json(COEFFICIENTS, coefficients)
    right = [(probability(row, coefficients) > 0.5) == wanted for row, wanted in zip(features, male, strict=True)]
    print(f"{COEFFICIENTS.name}: {sum(right)} of {len(right)} speakers right")


if __name__ == "__main__":
    typer.run(main)
