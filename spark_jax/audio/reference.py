"""Recordings of a voice to clone: no more is read of them than what the voice is taken from."""

import warnings

import numpy as np
from jaxtyping import Float

from spark_jax.audio import load
from spark_jax.audio.containers import SoundSource, open_sound
from spark_jax.audio.voicing import steadiness, voiced_part
from spark_jax.errors import SparkError

MAX_SECONDS = 30.0  # of speech in a prompt; also what sets the volume of a longer recording's clip

# Silence at the start. −60 dB of full scale is far below any room that people speak in.
_SILENT_POWER = 1e-6
_LONG = 50  # frames of 20 ms: a second
_LEAD = 5  # frames that are left before the sound, which may begin softly
_SOUND, _WINDOW = 5, 25  # sound has begun where so many of so many frames are loud; a click is none

# Measured: of the embedded voice's 50 held-out sentences, at least 4.8 % have a pitch (15 % of those that Whisper
# recognizes), and levels vary by 7.4 dB or more. White, pink, brown, low-passed and telephone noise of 6 s: at most
# 1.3 %. A hum or a tone: less than 0.1 dB.
_VOICED = 0.03
_STEADY = 1.0  # dB


def load_reference(path: SoundSource, sample_rate: int, spoken: bool = False) -> Float[np.ndarray, " resampled"]:
    """Returns the speech that a voice is taken from, in float64 at `sample_rate` (Hz).

    The channel is that of `load.load_audio`. Silence at the start is skipped where it is long and truly silent: at
    least a second in which every 20 ms are below −60 dB of full scale in all channels, up to 0.1 s before the first
    half second in which 0.1 s are louder. Any other recording of up to 30 s is taken as it is, as the reference
    implementation takes it. Of a longer one the first 30 s are read, no more.

    Args:
      path: the recording.
      sample_rate: of the result.
      spoken: its own speech is wanted, for it comes with a transcript; all of it is needed then.

    Warns:
      UserWarning: another channel than the first was taken.

    Raises:
      SparkError: as `load.load_audio`, or a recording with a transcript is longer than 30 s.
    """
    start, powers, rate = _listen(path, spoken)
    channel = load.speaking_channel(powers, path)
    samples, rate = load.read_channel(path, channel, start * (rate // load.FRAMES_PER_SECOND), MAX_SECONDS)
    return load.resample(samples, rate, sample_rate)


def check_length(path: SoundSource) -> None:
    """Refuses a recording that is too long to come with a transcript, before any model is loaded.

    Raises:
      SparkError: as `load_reference`.
    """
    _listen(path, spoken=True)


def warn_without_voice(samples: Float[np.ndarray, " time"], source: SoundSource, sample_rate: int) -> None:
    """Tells where a recording holds no voice: noise, a hum or a tone.

    Warns:
      UserWarning: less than 3 % of its loud part has a pitch, or its level does not change.
    """
    voiced = voiced_part(samples, sample_rate)
    if voiced < _VOICED:
        reason = f"{voiced:.1%} of it has a pitch, expected {_VOICED:.0%} or more"
    elif (change := steadiness(samples, sample_rate)) < _STEADY:
        reason = f"its level changes by {change:.1f} dB, expected {_STEADY:g} or more"
    else:
        return
    warnings.warn(f"{source}: no voice is heard in it ({reason})", stacklevel=3)


def _listen(path: SoundSource, spoken: bool) -> tuple[int, Float[np.ndarray, "frames channels"], int]:
    """Returns where the sound begins, in frames of 20 ms, the power of at most 30 s from there on, and the rate."""
    most = round(MAX_SECONDS * load.FRAMES_PER_SECOND)
    with open_sound(path) as sound:
        powers, start = np.zeros((0, sound.channels)), None
        for found in load.levels(sound):
            powers = np.concatenate([powers, found])
            start = _start_of_sound(powers) if start is None else start
            if start is not None and len(powers) > start + most:
                break
        start = start or 0
    # A frame more may be the rest of a recording of 30 s and some samples.
    if spoken and len(powers) > start + most + 1:
        raise SparkError(
            f"{path}: longer than {MAX_SECONDS:g} s, the most that a transcript may go with: "
            "cut both, or leave the transcript out"
        )
    return start, powers[start : start + most], sound.rate


def _start_of_sound(powers: Float[np.ndarray, "frames channels"]) -> int | None:
    """Returns the frame to begin at; None where it is silent up to now."""
    loud = (powers > _SILENT_POWER).any(axis=1)
    sums = np.cumsum(np.concatenate([[0], loud, np.zeros(_WINDOW, int)]))
    begins = np.flatnonzero(loud & (sums[_WINDOW : _WINDOW + len(loud)] - sums[: len(loud)] >= _SOUND))
    if not len(begins):
        return None
    return max(0, int(begins[0]) - _LEAD) if begins[0] >= _LONG else 0
