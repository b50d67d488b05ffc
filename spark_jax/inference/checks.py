"""Looks at what was synthesized: is it as long as its text, does it sound, does it go in circles, has it an end?

A language model of speech fails in few ways, and each leaves a mark that needs no listener. `check_speech` names them:

| name | value | limit |
|---|---|---|
| `no_end` | seconds, where it was cut off | as long as that was allowed |
| `silent` | dB of full scale, of its loudest 5 %, from 0.1 s on | -45 |
| `too_short` | seconds of sound | 0.09 a syllable |
| `too_long` | seconds | 0.5 a syllable and 1 more |
| `pause` | seconds of the longest silence | 2 |
| `loop` | seconds in which the same cycle of up to 1 s comes again, at least 3 times | 1 |

Measured on the embedded voice's 50 held-out sentences (`evaluation/held_out_sentences.txt`, seed 0), where all pass,
the 35 that Whisper tiny.en recognizes (at most a quarter of the words wrong) among them: sound lasts 0.135 to 0.295 s a
syllable, all of it 0.16 to 0.37 s; the loudest 5 % lie at -21.2 to -17.8 dB; the longest silence is 0.28 s; the same
token comes again for 0.2 s at most, a longer cycle for 0.18 s.

Of faults made from these 50: silence, speech 30 dB quieter, the first 0.16 s, the first third, four times the same, a
hole of 3 s, 60 s of silence after the end, one token for 1.5 s and a cycle of 0.2 s ten times are found in all 50; the
speech three times in 41, its first half in 11, and its double in none: a model may speak that slowly or fast.

NumPy only, so that tools which look at recordings need no JAX.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from spark_jax.text.syllables import count_syllables

NAMES = ("no_end", "silent", "too_short", "too_long", "pause", "loop")

SILENT_DB = -45.0
SHORTEST = 0.09  # s of sound a syllable: 11 syllables a second
LONGEST, LONGEST_REST = 0.5, 1.0  # s a syllable, and for pauses
LONGEST_PAUSE = 2.0  # s
LONGEST_LOOP = 1.0  # s
_FRAME = 0.02  # s
_FEWEST = 5  # frames that have a level to speak of
_BELOW = 35.0  # dB below the loud part: silence
_CYCLE = 1.0  # s
_TURNS = 3  # of a cycle, after its first


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a synthesized speech.

    Attributes:
      name: one of `NAMES`.
      value: what was found.
      limit: what is expected, at most or at least.
      message: both in words, in one line.
    """

    name: str
    value: float
    limit: float
    message: str


def check_speech(
    text: str,
    samples: Float[np.ndarray, " time"],
    sample_rate: int,
    semantic_ids: Int[np.ndarray, " tokens"],
    *,
    reached_limit: bool = False,
    syllables_per_second: float | None = None,
) -> tuple[Finding, ...]:
    """Returns what is wrong with the speech of a text; nothing where all is as expected.

    Args:
      text: what was to be said.
      samples: the speech.
      sample_rate: of the samples, in Hz.
      semantic_ids: what it was decoded from; all are of the same length.
      reached_limit: it was cut off; nothing is said about its length then but that.
      syllables_per_second: that were asked for; the limits of length follow a rate that is out of the ordinary.
    """
    seconds = len(samples) / sample_rate
    found = []
    if reached_limit:
        message = f"the speech has no end: cut off after {seconds:g} s"
        found.append(Finding("no_end", seconds, seconds, message))
    levels = _levels(samples, sample_rate)
    loud = float(np.percentile(levels, 95)) if len(levels) else -np.inf
    sounding = levels > max(loud - _BELOW, SILENT_DB - _BELOW)
    if len(levels) < _FEWEST:
        pass  # cut off so early that nothing can be heard
    elif loud < SILENT_DB:
        message = f"the speech is nearly silent: {loud:.0f} dB of full scale, expected {SILENT_DB:g} or more"
        found.append(Finding("silent", max(loud, -120.0), SILENT_DB, message))
    elif (pause := _longest_run(~sounding) * _FRAME) > LONGEST_PAUSE:
        message = f"the speech is silent for {pause:.1f} s, expected {LONGEST_PAUSE:g} or less"
        found.append(Finding("pause", pause, LONGEST_PAUSE, message))
    if not reached_limit:
        found += _check_length(count_syllables(text), seconds, _extent(sounding) * _FRAME, syllables_per_second)
    if len(semantic_ids):
        found += _check_loop(np.asarray(semantic_ids), seconds / len(semantic_ids))
    return tuple(sorted(found, key=lambda finding: NAMES.index(finding.name)))


def check_transcript(transcript: str, samples: Float[np.ndarray, " time"], sample_rate: int) -> str:
    """Returns why a recording can hardly say its transcript, judged by the length of its sound; "" where it can.

    The limits are those of `too_short` and `too_long`. Of 700 sentences of 345 virtual speakers all pass. With the
    transcript of another sentence 8 % are found, with one twice as long 32 %, three times 81 %, four times 96 %.
    """
    levels, syllables = _levels(samples, sample_rate), count_syllables(transcript)
    loud = float(np.percentile(levels, 95)) if len(levels) else -np.inf
    sound = _extent(levels > max(loud - _BELOW, SILENT_DB - _BELOW)) * _FRAME
    least, most = SHORTEST * syllables, LONGEST * syllables + LONGEST_REST
    if not syllables or least <= sound <= most:
        return ""
    about = f"about {syllables} syllable{'s' if syllables > 1 else ''}"
    return f"{sound:.2f} s of sound for {about}, expected {least:.2f} to {most:.1f} s"


def _check_length(syllables: int, seconds: float, sound: float, rate: float | None) -> list[Finding]:
    """Returns whether a speech is too short or too long for so many syllables; without any, nothing is known."""
    if not syllables:
        return []
    shortest, longest = SHORTEST, LONGEST
    if rate is not None:
        shortest, longest = min(shortest, 0.6 / rate), max(longest, 2.0 / rate)
    least, most = shortest * syllables, longest * syllables + LONGEST_REST
    about = f"for about {syllables} syllable{'s' if syllables > 1 else ''}, expected"
    if sound < least:
        message = f"the speech is too short: {sound:.2f} s {about} {least:.2f} or more"
        return [Finding("too_short", sound, least, message)]
    if seconds > most:
        return [
            Finding("too_long", seconds, most, f"the speech is too long: {seconds:.1f} s {about} {most:.1f} or less")
        ]
    return []


def _check_loop(ids: Int[np.ndarray, " tokens"], token_seconds: float) -> list[Finding]:
    """Returns whether a cycle of tokens comes again and again; of several the longest stretch."""
    longest, cycle = 0, 0
    for period in range(1, min(round(_CYCLE / token_seconds), len(ids) // (_TURNS + 1)) + 1):
        run = _longest_run(ids[period:] == ids[:-period])
        if run >= _TURNS * period and run > longest:
            longest, cycle = run, period
    seconds = longest * token_seconds
    if seconds <= LONGEST_LOOP:
        return []
    what = "token" if cycle == 1 else f"cycle of {cycle} tokens"
    message = f"the speech goes in circles: the same {what} for {seconds:.1f} s, expected {LONGEST_LOOP:g} or less"
    return [Finding("loop", seconds, LONGEST_LOOP, message)]


def _levels(samples: Float[np.ndarray, " time"], sample_rate: int) -> Float[np.ndarray, " frames"]:
    """Returns the level of each 20 ms in dB of full scale; what is constant in them cannot be heard."""
    length = max(1, round(_FRAME * sample_rate))
    count = len(samples) // length
    frames = np.asarray(samples[: count * length], np.float64).reshape(count, length)
    return 10 * np.log10(frames.var(axis=1) + 1e-12)


def _longest_run(flags: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _extent(flags: np.ndarray) -> int:
    """Returns how many flags there are from the first to the last that is set."""
    where = np.flatnonzero(flags)
    return int(where[-1] - where[0] + 1) if len(where) else 0
