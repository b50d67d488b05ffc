"""Judges of the signal that need no package: rate of speaking, and whether the output repeats every token."""

from typing import Any

import numpy as np
from jaxtyping import Float

from spark_jax.evaluation.judges.base import SAMPLE_RATE, Utterance, finite
from spark_jax.text.syllables import count_syllables

SILENCE_DB = -40.0  # below the loudest 20 ms: silence at both ends
LOUD = 0.1  # of the loudest frame's power
WINDOW, HOP = 0.04, 0.01  # s


class SignalJudge:
    """Rate of speaking, and the correlation of the speech with itself one token later.

    A codec that repeats the same 20 ms sounds like whispering: its self-correlation is near 1, that of recordings near
    0.

    Args:
      token_seconds: of one semantic token.
    """

    name = "signal"

    def __init__(self, token_seconds: float = 0.02):
        self._token_seconds, self.version = token_seconds, f"spark-jax, lag {token_seconds * 1e3:g} ms"

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns `self_correlation`, `speech_seconds` and, of a known text, `syllables_per_second`."""
        start, end = speech_span(utterance.samples, SAMPLE_RATE)
        seconds = (end - start) / SAMPLE_RATE
        found = {
            "self_correlation": self_correlation(utterance.samples, SAMPLE_RATE, self._token_seconds),
            "speech_seconds": finite(seconds, 4),
        }
        if utterance.text is not None:
            syllables = count_syllables(utterance.text)
            found["syllables_per_second"] = finite(syllables / seconds, 4) if seconds and syllables else None
        return found


def speech_span(samples: Float[np.ndarray, " time"], sample_rate: int) -> tuple[int, int]:
    """Returns the first sample of speech and that after the last one; (0, 0) for silence."""
    frame = sample_rate // 50
    frames = len(samples) // frame
    if frames == 0 or not np.any(samples):
        return 0, 0
    level = np.sqrt(np.mean(samples[: frames * frame].reshape(frames, frame).astype(np.float64) ** 2, axis=1))
    (loud,) = np.nonzero(level > level.max() * 10 ** (SILENCE_DB / 20))
    return int(loud[0]) * frame, int(loud[-1] + 1) * frame


def self_correlation(samples: Float[np.ndarray, " time"], sample_rate: int, lag_seconds: float) -> float | None:
    """Returns the mean correlation of loud windows of 40 ms with those `lag_seconds` later.

    Returns:
      1 for a signal that repeats itself with this period; None for silence, and for less than a window.
    """
    samples = samples.astype(np.float64)
    lag, window, hop = (round(seconds * sample_rate) for seconds in (lag_seconds, WINDOW, HOP))
    if len(samples) < window + lag:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(samples, window)
    first = windows[: len(windows) - lag : hop]
    second = windows[lag : lag + len(windows) - lag : hop]
    power = np.mean(first**2, axis=1)
    if not power.max() > 0:
        return None
    loud = power > LOUD * power.max()
    first, second = first[loud], second[loud]
    norms = np.sqrt(np.sum(first**2, axis=1) * np.sum(second**2, axis=1))
    return finite(np.mean(np.sum(first * second, axis=1) / np.maximum(norms, 1e-12)), 4)
