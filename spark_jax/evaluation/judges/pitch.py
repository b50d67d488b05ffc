"""A judge of the voice's pitch and harmonicity: Praat, by the package praat-parselmouth."""

from typing import Any

import numpy as np
from jaxtyping import Float

from spark_jax.evaluation.judges.base import SAMPLE_RATE, Utterance, finite, versions
from spark_jax.shared.extra import needs_extra

FLOOR, CEILING = 60.0, 500.0  # Hz
STEP = 0.01  # s
GROSS = 0.2  # relative error of a gross one
FEWEST = 10  # frames that a correlation is computed of
_SHORTEST = 0.1  # s, of what Praat analyzes


class PitchJudge:
    """F0, voicing and harmonics-to-noise ratio; beside a target also how well F0 and voicing agree.

    Raises:
      SparkError: from the constructor, where the extra `evaluation` is not installed.
    """

    name = "pitch"

    def __init__(self):
        with needs_extra("evaluation"):
            import parselmouth
        self._praat = parselmouth
        self.version = f"{versions('praat-parselmouth')}, {FLOOR:g} to {CEILING:g} Hz"

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns `f0` (mean in Hz), `voiced` (part of the frames), `hnr` in dB, and see `compare_pitch`."""
        f0 = self.track(utterance.samples)
        voiced = f0[f0 > 0]
        found = {
            "f0": finite(voiced.mean(), 2) if len(voiced) else None,
            "voiced": finite(np.mean(f0 > 0), 4) if len(f0) else None,
            "hnr": self.harmonicity(utterance.samples),
        }
        if utterance.target is not None:
            found |= compare_pitch(f0, self.track(utterance.target))
        return found

    def track(self, samples: Float[np.ndarray, " time"]) -> Float[np.ndarray, " frames"]:
        """Returns F0 in Hz every 10 ms, 0 where unvoiced; frame i is centered at (i + ½) · 10 ms."""
        frames = int(len(samples) / SAMPLE_RATE / STEP)
        if len(samples) < _SHORTEST * SAMPLE_RATE or not np.any(samples):
            return np.zeros(frames)
        pitch = self._praat.Sound(samples.astype(np.float64), SAMPLE_RATE).to_pitch(STEP, FLOOR, CEILING)
        return np.nan_to_num([pitch.get_value_at_time((frame + 0.5) * STEP) for frame in range(frames)])

    def harmonicity(self, samples: Float[np.ndarray, " time"]) -> float | None:
        """Returns the mean harmonics-to-noise ratio in dB over frames that are not silent; None where all are."""
        if len(samples) < _SHORTEST * SAMPLE_RATE or not np.any(samples):
            return None
        values = self._praat.Sound(samples.astype(np.float64), SAMPLE_RATE).to_harmonicity_cc(STEP, FLOOR).values
        values = values[values > -100.0]  # -200: silence
        return finite(values.mean(), 3) if len(values) else None


def compare_pitch(f0: Float[np.ndarray, " frames"], target: Float[np.ndarray, " _"]) -> dict[str, float | None]:
    """Compares two tracks of F0 in Hz, 0 where unvoiced, frame by frame.

    Returns:
      `voicing_agreement`: part of the frames that are voiced in both or in none; of those voiced in both:
      `f0_correlation` of the logarithms, `f0_median_error` in semitones, and `f0_gross_errors`, the part that is more
      than 20 % off. None where there are too few frames.
    """
    length = min(len(f0), len(target))
    f0, target = f0[:length], target[:length]
    both = (f0 > 0) & (target > 0)
    found: dict[str, float | None] = {
        "voicing_agreement": finite(np.mean((f0 > 0) == (target > 0)), 4) if length else None,
        "f0_correlation": None,
        "f0_median_error": None,
        "f0_gross_errors": None,
    }
    if np.count_nonzero(both) >= FEWEST:
        own, wanted = np.log(f0[both]), np.log(target[both])
        if own.std() > 1e-9 and wanted.std() > 1e-9:
            found["f0_correlation"] = finite(np.corrcoef(own, wanted)[0, 1], 4)
        found["f0_median_error"] = finite(np.median(np.abs(own - wanted)) * 12 / np.log(2), 4)
        found["f0_gross_errors"] = finite(np.mean(np.abs(f0[both] / target[both] - 1.0) > GROSS), 4)
    return found
