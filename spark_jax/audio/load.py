"""Audio files in: read one channel, check, resample."""

import warnings
from collections.abc import Iterator

import numpy as np
import soxr
from jaxtyping import Float

from spark_jax.audio.containers import Sound, SoundSource, open_sound
from spark_jax.errors import SparkError

MIN_SECONDS = 0.1
SILENCE_PEAK = 1e-4  # −80 dB of full scale, three steps of 16-bit audio: nothing can be heard below
MAX_SAMPLES = 2**26  # of a channel, in memory at once: 512 MB; 23 minutes at 48 kHz
FRAMES_PER_SECOND = 50  # of levels
_QUIETER = 0.1  # 20 dB: a first channel so far below the loudest is not the one that speaks


def load_audio(path: SoundSource, sample_rate: int) -> Float[np.ndarray, " time"]:
    """Returns one channel of a sound file in float64, resampled to `sample_rate` (Hz).

    Of several channels the first counts, as in the reference; where it is silent or 20 dB below the loudest, the
    loudest counts. Reads what `open_sound` opens. Reference: sparktts/utils/audio.py, `load_audio`.

    Warns:
      UserWarning: another channel than the first was taken.

    Raises:
      SparkError: the file is missing, no audio, empty, too long for memory (`MAX_SAMPLES`), or holds NaN or infinite
        samples.
    """
    channel = 0
    with open_sound(path) as sound:
        if sound.channels > 1:
            rows = list(levels(sound))
            channel = speaking_channel(np.concatenate(rows) if rows else np.zeros((0, sound.channels)), path)
    samples, rate = read_channel(path, channel)
    return resample(samples, rate, sample_rate)


def levels(sound: Sound) -> Iterator[Float[np.ndarray, "frames channels"]]:
    """Yields the mean power of each 20 ms of each channel, without what is constant in them; some frames at a time.

    A rest that is shorter than 20 ms counts as a frame. Frames with samples that are not finite have no power. Ends
    after `MAX_SAMPLES` of a channel, which nothing needs more of.
    """
    length = sound.rate // FRAMES_PER_SECOND
    rest, count = np.zeros((0, sound.channels)), 0
    for block in sound.blocks:
        count += len(block)
        if count > MAX_SAMPLES:
            return
        rest = np.concatenate([rest, block])
        whole = len(rest) // length * length
        if whole:
            yield _powers(rest[:whole].reshape(-1, length, sound.channels))
            rest = rest[whole:]
    if len(rest):
        yield _powers(rest[None])


def _powers(frames: Float[np.ndarray, "frames length channels"]) -> Float[np.ndarray, "frames channels"]:
    with np.errstate(all="ignore"):
        return np.nan_to_num(frames.var(axis=1), nan=0.0, posinf=0.0)


def speaking_channel(powers: Float[np.ndarray, "frames channels"], source: SoundSource) -> int:
    """Returns the number of the channel to take: the first, or the loudest where the first is 20 dB below it.

    Args:
      powers: from `levels`.
      source: what the warning calls the file.

    Warns:
      UserWarning: it is not the first.
    """
    volume = np.sqrt(powers.mean(axis=0)) if len(powers) else np.zeros(powers.shape[1])
    loudest = int(volume.argmax())
    if volume[0] > _QUIETER * volume[loudest] or volume[loudest] == 0:
        return 0
    how = f"{20 * np.log10(volume[loudest] / volume[0]):.0f} dB below" if volume[0] > SILENCE_PEAK / 10 else "silent"
    beside = f"channel {loudest + 1}" if how != "silent" else f"and channel {loudest + 1} is not"
    warnings.warn(
        f"{source}: channel 1 is {how} {beside}: channel {loudest + 1} of {len(volume)} is taken", stacklevel=4
    )
    return loudest


def read_channel(
    path: SoundSource, channel: int, start: int = 0, seconds: float | None = None
) -> tuple[Float[np.ndarray, " time"], int]:
    """Returns samples of a channel at the file's own rate, and that rate.

    Args:
      path: the file.
      channel: its number, from 0.
      start: the first sample that is taken.
      seconds: at most so much; None: to the end.

    Raises:
      SparkError: as `load_audio`.
    """
    parts, count, skipped = [], 0, 0
    with open_sound(path) as sound:
        wanted = MAX_SAMPLES + 1 if seconds is None else min(round(seconds * sound.rate), MAX_SAMPLES)
        for block in sound.blocks:
            skip = min(start - skipped, len(block))
            skipped += skip
            # A copy: a view would keep all channels in memory.
            part = block[skip : skip + wanted - count, channel].copy()
            parts.append(part)
            count += len(part)
            if count == wanted:
                break
    if count > MAX_SAMPLES:
        most = MAX_SAMPLES / sound.rate
        raise SparkError(f"{path}: longer than {most:.0f} s at {sound.rate} Hz, the most that is read at once: cut it")
    if not count:
        raise SparkError(f"{path}: the audio is empty")
    samples = np.concatenate(parts)
    check_finite(samples, path)
    return samples, sound.rate


def resample(samples: Float[np.ndarray, " time"], source: int, target: int) -> Float[np.ndarray, " resampled"]:
    """Resamples by soxr's VHQ recipe, in the dtype of the samples (float64 for parity); `source`, `target` in Hz."""
    return samples if source == target else soxr.resample(samples, source, target, quality="VHQ")


def check_reference(samples: np.ndarray, source: SoundSource, sample_rate: int) -> None:
    """Refuses audio from which no voice and no tokens can be taken.

    Args:
      samples: amplitude in [-1, 1].
      source: what the message calls it, such as the file name.
      sample_rate: of the samples, in Hz.

    Raises:
      SparkError: shorter than 0.1 s, NaN or infinite samples, or silence.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise SparkError(f"{source}: expected one channel, found samples of shape {samples.shape}")
    seconds = len(samples) / sample_rate
    if seconds < MIN_SECONDS:
        raise SparkError(f"{source}: {seconds:.3f} s of audio, expected at least {MIN_SECONDS} s")
    check_finite(samples, source)
    peak = max(samples.max(), -samples.min())
    if peak < SILENCE_PEAK:
        raise SparkError(f"{source}: the audio is silent (peak {peak:.1e}, audible from {SILENCE_PEAK:.0e})")


def check_finite(samples: np.ndarray, source: SoundSource) -> None:
    """Refuses samples of which some are no numbers; `source` is what the message calls them.

    Raises:
      SparkError: NaN or infinite samples.
    """
    bad = np.count_nonzero(~np.isfinite(samples))
    if bad:
        raise SparkError(f"{source}: {bad} of {samples.size} samples are NaN or infinite")
