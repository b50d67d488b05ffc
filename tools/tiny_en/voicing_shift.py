"""Planned phoneme times moved to where the speech has them: voiced phonemes where there is pitch, unvoiced where not.

An engine's duration predictor says how long phonemes are, and not exactly where its vocoder begins: of hibari's voice
the planned times are late by some 35 ms, differently in each utterance.
"""

import numpy as np
from jaxtyping import Bool, Float

UNVOICED = frozenset("ptkfsʃθʧh")
UNKNOWN = frozenset(" .,;:?!-—'\"")  # pauses, or none
STRESS = frozenset("ˈˌ")  # lasts as if it were a part of the sound that it precedes
SHIFTS = np.arange(-0.16, 0.061, 0.005)  # seconds
SMOOTHING = 5  # shifts over which a score is averaged: the middle of a plateau, not its first shift


def expected_voicing(phonemes: str) -> Float[np.ndarray, " phonemes"]:
    """Returns 1 for each voiced phoneme, 0 for each unvoiced one, and NaN where it is not known."""
    voicing = np.array([0.0 if p in UNVOICED else np.nan if p in UNKNOWN else 1.0 for p in phonemes])
    for i in reversed([i for i, p in enumerate(phonemes) if p in STRESS]):
        voicing[i] = voicing[i + 1] if i + 1 < len(phonemes) else np.nan
    return voicing


def voicing_shift(
    bounds: Float[np.ndarray, " bounds"], phonemes: str, voiced: Bool[np.ndarray, " frames"], frame_seconds: float
) -> float:
    """Returns the shift in seconds at which phonemes and pitch agree best; 0 if nothing decides.

    Args:
      bounds: seconds; phoneme i lasts from bound i to bound i + 1.
      phonemes: one character each.
      voiced: frame i is at i · `frame_seconds`.
      frame_seconds: from frame to frame.
    """
    expected = np.concatenate([[0.0], expected_voicing(phonemes), [np.nan]])  # silent before, unknown after
    times = np.arange(len(voiced)) * frame_seconds
    scores = []
    for shift in SHIFTS:
        wanted = expected[np.searchsorted(bounds + shift, times, side="right")]
        scores.append(np.sum(np.where(np.isnan(wanted), 0.5, wanted == voiced)))
    half = SMOOTHING // 2
    scores = np.convolve(np.pad(scores, half, mode="edge"), np.ones(SMOOTHING), "valid")
    return float(SHIFTS[np.argmax(scores)]) if np.ptp(scores) > 0 else 0.0


def settle_bounds(
    bounds: list[float], phonemes: str, voiced: Bool[np.ndarray, " frames"], frame_seconds: float
) -> list[float]:
    """Moves bounds by their `voicing_shift`, none before the beginning. The arguments are those of `voicing_shift`."""
    moved = np.asarray(bounds) + voicing_shift(np.asarray(bounds), phonemes, voiced, frame_seconds)
    return [round(float(time), 3) for time in np.maximum(moved, 0.0)]
