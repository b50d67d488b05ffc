"""Speech taken apart into pitch, envelope and noise, and put together as another speaker's (WORLD, by pyworld)."""

import dataclasses

import numpy as np
from corpus_measures import praat_pitch
from jaxtyping import Float
from virtual_speakers import VirtualSpeaker

FRAME_SECONDS = 0.005
PITCH_LIMITS = (50.0, 500.0)  # Hz that a moved contour is clipped to
TILT_CENTER = 500.0  # Hz that a tilt leaves as loud as it was
TILT_FLOOR = 100.0  # Hz below which it changes no more

Contour = Float[np.ndarray, " frames"]  # F0 in Hz of frames of FRAME_SECONDS, 0 where the speech is unvoiced
Samples = Float[np.ndarray, " samples"]


def pitch_contour(samples: Samples, sample_rate: int, fundamental: bool) -> Contour:
    """Measures F0 in Hz every `FRAME_SECONDS`, 0 where the speech is unvoiced.

    Args:
      samples: of an utterance.
      sample_rate: theirs.
      fundamental: whether the fundamental itself can be trusted to be there, which WORLD's dio looks for. Of speech
        without it (a low voice above a high-pass filter) dio finds the octave, and Praat's autocorrelation does not.
    """
    import pyworld

    if not fundamental:
        times = np.arange(int(len(samples) / sample_rate / FRAME_SECONDS) + 1) * FRAME_SECONDS
        return praat_pitch(samples, sample_rate, times)

    samples = samples.astype(np.float64)
    f0, times = pyworld.dio(samples, sample_rate, frame_period=FRAME_SECONDS * 1000)
    return pyworld.stonemask(samples, f0, times, sample_rate)


@dataclasses.dataclass(frozen=True)
class Speech:
    """An utterance taken apart.

    Attributes:
      samples: as they were.
      contour: their pitch.
      envelope: power spectrum without harmonics.
      aperiodicity: share of noise in it, 0 to 1.
    """

    samples: Samples
    sample_rate: int
    contour: Contour
    envelope: Float[np.ndarray, "frames bins"]
    aperiodicity: Float[np.ndarray, "frames bins"]


def analyze(samples: Samples, sample_rate: int, fundamental: bool = True) -> Speech:
    """Takes an utterance apart; arguments as for `pitch_contour`."""
    import pyworld

    wide, contour = samples.astype(np.float64), pitch_contour(samples, sample_rate, fundamental)
    times = np.arange(len(contour)) * FRAME_SECONDS
    envelope = pyworld.cheaptrick(wide, contour, times, sample_rate)
    return Speech(wide, sample_rate, contour, envelope, pyworld.d4c(wide, contour, times, sample_rate))


def speak_as(
    speech: Speech, speaker: VirtualSpeaker, duration: float, own_formant: float = 1.0
) -> tuple[Samples, Contour]:
    """Puts an utterance together as another speaker's, as loud as it was.

    Args:
      speech: with something voiced in it.
      speaker: whose it becomes.
      duration: factor of its duration.
      own_formant: the formant factor of who spoke it, relative to what the speaker's is relative to.

    Returns:
      Samples, and their pitch: what they were made with, one frame every FRAME_SECONDS · `duration`.
    """
    import pyworld

    contour = move_pitch(speech.contour, speaker.pitch, speaker.range)
    envelope = warp_envelope(speech.envelope, speaker.formant / own_formant)
    envelope = envelope * tilt_gain(envelope.shape[1], speech.sample_rate, speaker.tilt)
    aperiodicity = speech.aperiodicity + speaker.breath * (1.0 - speech.aperiodicity)
    frame_milliseconds = FRAME_SECONDS * 1000 * duration
    samples = pyworld.synthesize(
        contour, np.ascontiguousarray(envelope), aperiodicity, speech.sample_rate, frame_milliseconds
    )
    power = np.mean(np.square(samples))
    return samples * np.sqrt(np.mean(np.square(speech.samples)) / power) if power > 0 else samples, contour


def move_pitch(contour: Contour, mean: float, spread: float) -> Contour:
    """Moves the geometric mean of a contour to `mean` Hz, and its logarithm's distances from it by a factor."""
    voiced = contour > 0
    if not voiced.any():
        return contour
    logarithm = np.log(contour[voiced])
    moved = np.log(mean) + spread * (logarithm - logarithm.mean())
    result = np.zeros_like(contour)
    result[voiced] = np.exp(moved).clip(*PITCH_LIMITS)
    return result


def warp_envelope(envelope: Float[np.ndarray, "frames bins"], factor: float) -> Float[np.ndarray, "frames bins"]:
    """Multiplies the frequencies of an envelope by a factor; interpolated in decibels."""
    bins = envelope.shape[1]
    places = np.minimum(np.arange(bins) / factor, bins - 1)
    below = np.minimum(places.astype(int), bins - 2)
    part = places - below
    logarithm = np.log(envelope)
    return np.exp(logarithm[:, below] * (1.0 - part) + logarithm[:, below + 1] * part)


def tilt_gain(bins: int, sample_rate: int, tilt: float) -> Float[np.ndarray, " bins"]:
    """Returns the gain of power that tilts a spectrum by `tilt` dB an octave."""
    frequencies = np.maximum(np.linspace(0.0, sample_rate / 2, bins), TILT_FLOOR)
    return 10.0 ** (tilt * np.log2(frequencies / TILT_CENTER) / 10.0)
