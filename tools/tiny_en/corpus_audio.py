"""How an utterance is stored: 16 kHz, little silence at its ends, nothing clipped, FLAC."""

import os
from pathlib import Path

import numpy as np
from corpus_measures import speech_span
from jaxtyping import Float

SAMPLE_RATE = 16000
PEAK = 0.95  # louder utterances are scaled down to this, so that resampling overshoot cannot clip
MARGIN_SECONDS = 0.15  # of silence kept at either end; hibari leaves 0.4 s, wasted tokens
MAX_SYLLABLES_PER_SECOND = 10.0  # spec: faster utterances are dropped


def trim(samples: Float[np.ndarray, " samples"], sample_rate: int) -> tuple[Float[np.ndarray, " trimmed"], int]:
    """Cuts silence beyond the margin off both ends.

    Returns:
      The rest, and how many samples of it are from the first to the last sound; both nothing for a signal without
      sound, or one that is not finite.
    """
    if not np.all(np.isfinite(samples)):
        return samples[:0], 0
    start, end = speech_span(samples, sample_rate)
    margin = round(MARGIN_SECONDS * sample_rate) if end > start else 0
    return samples[max(0, start - margin) : end + margin], end - start


def to_stored_rate(samples: Float[np.ndarray, " samples"], sample_rate: int) -> Float[np.ndarray, " resampled"]:
    """Resamples to `SAMPLE_RATE` where it is another."""
    import soxr

    return samples if sample_rate == SAMPLE_RATE else soxr.resample(samples, sample_rate, SAMPLE_RATE, quality="VHQ")


def limit_peak(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Scales down a signal whose peak is beyond `PEAK`."""
    return samples * min(1.0, PEAK / float(np.abs(samples).max()))


def write_flac(path: Path, samples: Float[np.ndarray, " samples"]) -> None:
    """Writes 16-bit samples at `SAMPLE_RATE`; the file is whole or not there."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    soundfile.write(part, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    os.replace(part, path)
