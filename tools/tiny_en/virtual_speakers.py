"""Virtual speakers: who a cheap source voice is turned into, in numbers (spoken by `world_speech`).

Sixteen named voices on a grid that listeners can tell apart, random speakers from the whole range, and held-out
speakers, whose combinations of formants and pitch no random speaker of the training data comes near to.
"""

import dataclasses
import math

import numpy as np

FEMALE, MALE = "female", "male"

# Ranges of random speakers: formant factor relative to an average female voice, and mean F0 in Hz. They cover all five
# pitch levels of a gender but the male's highest.
FORMANTS = {FEMALE: (0.94, 1.18), MALE: (0.76, 0.90)}
PITCHES = {FEMALE: (140.0, 290.0), MALE: (75.0, 190.0)}
RANGES = (0.6, 1.3)
TILTS = (-1.0, 0.5)
BREATHS = (0.0, 0.15)

# A random speaker keeps away from a held-out one in formants or in pitch.
HELD_OUT_FORMANT_DISTANCE = math.log(1.02)
HELD_OUT_PITCH_DISTANCE = math.log(2.0) / 12  # a semitone

# Durations relative to the source: most speech near its pace, and a share that fills the slow speed levels.
DURATIONS = (0.85, 1.2)
SLOW_DURATIONS = (1.2, 1.6)
SLOW_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class VirtualSpeaker:
    """What makes a speaker, relative to an average female voice.

    Attributes:
      name: unique within a corpus.
      gender: "female" or "male".
      formant: factor of the spectral envelope's frequencies.
      pitch: geometric mean of F0 in Hz.
      range: factor of the spread of log F0 around its mean.
      tilt: of the spectrum in dB an octave.
      breath: share of the periodic energy that becomes noise, 0 to 1.
    """

    name: str
    gender: str
    formant: float
    pitch: float
    range: float = 1.0
    tilt: float = 0.0
    breath: float = 0.0


_NAMED = (
    VirtualSpeaker("ada", FEMALE, 0.95, 165.0, 0.8, -0.6, 0.05),
    VirtualSpeaker("beth", FEMALE, 0.95, 240.0, 1.1, -0.3, 0.00),
    VirtualSpeaker("cora", FEMALE, 1.01, 165.0, 1.2, 0.2, 0.00),
    VirtualSpeaker("dana", FEMALE, 1.01, 240.0, 0.9, 0.0, 0.10),
    VirtualSpeaker("edith", FEMALE, 1.07, 165.0, 0.9, -0.8, 0.10),
    VirtualSpeaker("flora", FEMALE, 1.07, 240.0, 1.2, 0.3, 0.00),
    VirtualSpeaker("grace", FEMALE, 1.14, 165.0, 1.1, -0.2, 0.05),
    VirtualSpeaker("hazel", FEMALE, 1.14, 240.0, 1.0, 0.1, 0.00),
    VirtualSpeaker("adam", MALE, 0.76, 90.0, 0.9, -0.3, 0.05),
    VirtualSpeaker("boris", MALE, 0.76, 130.0, 1.1, -0.6, 0.00),
    VirtualSpeaker("carl", MALE, 0.80, 90.0, 1.2, 0.2, 0.00),
    VirtualSpeaker("david", MALE, 0.80, 130.0, 0.8, 0.0, 0.10),
    VirtualSpeaker("edgar", MALE, 0.84, 90.0, 0.8, -0.8, 0.10),
    VirtualSpeaker("felix", MALE, 0.84, 130.0, 1.2, 0.3, 0.00),
    VirtualSpeaker("george", MALE, 0.89, 90.0, 1.0, -0.5, 0.00),
    VirtualSpeaker("henry", MALE, 0.89, 130.0, 1.0, 0.1, 0.05),
)
NAMED = {speaker.name: speaker for speaker in _NAMED}

_HELD_OUT = (
    VirtualSpeaker("held-f0", FEMALE, 0.98, 200.0, 1.0, -0.2, 0.02),
    VirtualSpeaker("held-f1", FEMALE, 1.04, 190.0, 0.8, 0.2, 0.08),
    VirtualSpeaker("held-f2", FEMALE, 1.04, 270.0, 1.2, -0.5, 0.00),
    VirtualSpeaker("held-f3", FEMALE, 1.10, 150.0, 0.9, 0.0, 0.05),
    VirtualSpeaker("held-f4", FEMALE, 1.10, 215.0, 1.1, -0.7, 0.10),
    VirtualSpeaker("held-f5", FEMALE, 1.17, 205.0, 1.0, 0.3, 0.00),
    VirtualSpeaker("held-m0", MALE, 0.78, 110.0, 1.1, -0.4, 0.05),
    VirtualSpeaker("held-m1", MALE, 0.78, 150.0, 0.9, 0.1, 0.00),
    VirtualSpeaker("held-m2", MALE, 0.82, 80.0, 1.0, -0.7, 0.08),
    VirtualSpeaker("held-m3", MALE, 0.82, 110.0, 0.8, 0.3, 0.00),
    VirtualSpeaker("held-m4", MALE, 0.865, 108.0, 1.2, 0.0, 0.02),
    VirtualSpeaker("held-m5", MALE, 0.865, 165.0, 1.0, -0.2, 0.10),
)
HELD_OUT = {speaker.name: speaker for speaker in _HELD_OUT}


def is_near_held_out(formant: float, pitch: float) -> bool:
    """Tells whether formants and pitch are both those of a held-out speaker, within what a listener hardly hears."""
    return any(
        abs(math.log(formant / other.formant)) < HELD_OUT_FORMANT_DISTANCE
        and abs(math.log(pitch / other.pitch)) < HELD_OUT_PITCH_DISTANCE
        for other in HELD_OUT.values()
    )


def random_speaker(rng: np.random.Generator, name: str, gender: str) -> VirtualSpeaker:
    """Draws a speaker of a gender who is none of the held-out ones; formants and pitch uniform in their logarithms."""
    while True:
        formant, pitch = (
            round(math.exp(rng.uniform(*np.log(limits[gender]))), digits)
            for limits, digits in ((FORMANTS, 3), (PITCHES, 1))
        )
        if not is_near_held_out(formant, pitch):
            break
    rest = (round(rng.uniform(*limits), 3) for limits in (RANGES, TILTS, BREATHS))
    return VirtualSpeaker(name, gender, formant, pitch, *rest)


def random_duration(rng: np.random.Generator) -> float:
    """Draws a duration factor, uniform in its logarithm on either side of the slow share."""
    limits = SLOW_DURATIONS if rng.random() < SLOW_SHARE else DURATIONS
    return round(math.exp(rng.uniform(*np.log(limits))), 3)
