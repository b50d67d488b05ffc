"""A judge of gender: F0 and formants, and a logistic regression that was fitted to recordings.

The recordings are those of Peterson and Barney (1952), ten vowels of 33 men and 28 women, whose measures come with
Praat, and sentences of six speakers. `tools/gender_judge.py` names them, fits the coefficients in `gender.json` to the
means of each speaker, and tries the judge on other recordings.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spark_jax.evaluation.judges.base import SAMPLE_RATE, Utterance, finite, versions
from spark_jax.evaluation.judges.pitch import PitchJudge
from spark_jax.shared import files
from spark_jax.shared.extra import needs_extra

COEFFICIENTS = Path(__file__).with_name("gender.json")
FORMANTS = 3
MAX_FORMANT = 5250.0  # Hz, of five formants: between the 5000 of men and the 5500 of women
FEWEST = 10  # voiced frames: less is no voice
_STEP = 0.01  # s


class GenderJudge:
    """Tells a female voice from a male one by the mean F0 and the mean of the first three formants.

    Raises:
      SparkError: from the constructor, where the extra `evaluation` is not installed.
    """

    name = "gender"

    def __init__(self):
        with needs_extra("evaluation"):
            import parselmouth
        self._praat, self._pitch = parselmouth, PitchJudge()
        self._coefficients = files.read_json(COEFFICIENTS)
        self.version = f"{versions('praat-parselmouth')}, coefficients of {self._coefficients['speakers']} speakers"

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns `gender` and the probability `male`; None where there is no voice, as in whispering."""
        features = self.features(utterance.samples)
        if features is None:
            return {"gender": None, "male": None}
        male = probability(features, self._coefficients)
        return {"gender": "male" if male > 0.5 else "female", "male": finite(male, 4)}

    def features(self, samples: Float[np.ndarray, " time"]) -> Float[np.ndarray, "2"] | None:
        """Returns the mean of log F0, and of the logarithms of F1 to F3, over voiced frames; None without a voice."""
        f0 = self._pitch.track(samples)
        (voiced,) = np.nonzero(f0)
        if len(voiced) < FEWEST:
            return None
        sound = self._praat.Sound(samples.astype(np.float64), SAMPLE_RATE)
        formant = sound.to_formant_burg(_STEP, 5.0, MAX_FORMANT)
        values = np.array(
            [
                [formant.get_value_at_time(number, (frame + 0.5) * _STEP) for number in range(1, FORMANTS + 1)]
                for frame in voiced
            ]
        )
        values = values[np.all(np.isfinite(values), axis=1)]
        if len(values) < FEWEST:
            return None
        return speaker_features(f0[voiced], values)


def speaker_features(
    f0: Float[np.ndarray, " frames"], formants: Float[np.ndarray, "_ formants"]
) -> Float[np.ndarray, "2"]:
    """Returns the mean of log F0 and the mean of all logarithms of formants (Hz)."""
    return np.array([np.mean(np.log(f0)), np.mean(np.log(formants))])


def probability(features: Float[np.ndarray, "2"], coefficients: dict[str, Any]) -> float:
    """Returns the probability that a speaker is male.

    Args:
      features: see `speaker_features`.
      coefficients: `mean` and `deviation` of the features, `weights` and `bias` of the regression.
    """
    scaled = (features - np.array(coefficients["mean"])) / np.array(coefficients["deviation"])
    return float(1.0 / (1.0 + np.exp(-(scaled @ np.array(coefficients["weights"]) + coefficients["bias"]))))
