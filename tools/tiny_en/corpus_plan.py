"""Who speaks which sentence how often: a function of the sentence alone, so that any part of a corpus has all kinds."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from corpus_sentences import split_of, words
from virtual_speakers import FEMALE, HELD_OUT, MALE, NAMED, VirtualSpeaker, random_duration, random_speaker

SOURCE = "heart"  # the engine that speaks every sentence
HELD_OUT_SHARE = 0.02  # of sentences, for the validation and for the test split

# Shares of the kinds of speaker in the two takes of a training sentence: unmodified, named, random. Together 15 % are
# unmodified; the second take is never the first one's audio again.
SHARES = ((0.30, 0.20, 0.50), (0.0, 0.60, 0.40))

# A share of the sentences is spoken by another engine too, so that the codec hears more than one engine's habits:
# half of them as the engine speaks, half as a random speaker of the engine's gender.
OTHER_SHARE = 0.25
OTHER_UNMODIFIED = 0.5
# Engine: gender, how often relative to the others, formants relative to an average female voice.
OTHERS = {
    "joe": (MALE, 4, 0.84),
    "slt": (FEMALE, 2, 1.0),
    "rms": (MALE, 2, 0.84),
    "awb": (MALE, 1, 0.84),
    "kal16": (MALE, 1, 0.84),
}
FORMANTS = {SOURCE: 1.0} | {name: formant for name, (_, _, formant) in OTHERS.items()}


@dataclasses.dataclass(frozen=True)
class Take:
    """One utterance of a sentence.

    Attributes:
      version: 0 and 1 are the source's, 2 another engine's.
      engine: voice that speaks it (`corpus_voices`).
      kind: "source" as the engine speaks, "named", "random" or "held_out".
      speaker: who the engine is turned into; None: nobody.
      duration: factor of the engine's.
    """

    version: int
    engine: str
    kind: str
    speaker: VirtualSpeaker | None
    duration: float = 1.0


def split(sentence: str) -> str:
    """Returns the split of a sentence: "train", "validation" or "test"."""
    return split_of(sentence, HELD_OUT_SHARE, HELD_OUT_SHARE)


def takes(sentence: str, others: Sequence[str] = tuple(OTHERS)) -> list[Take]:
    """Plans the utterances of a sentence.

    Args:
      sentence: what is spoken.
      others: engines beside the source that take part, some of `OTHERS`.
    """
    first = _own(sentence, 0, SHARES[0])
    if split(sentence) == "train":
        planned = [first, _own(sentence, 1, SHARES[1])]
    else:  # held-out sentences: once as in training, once by a speaker whom training never hears
        rng = _rng(sentence, "held out")
        speaker = list(HELD_OUT.values())[rng.integers(len(HELD_OUT))]
        planned = [first, Take(1, SOURCE, "held_out", speaker, random_duration(rng))]
    rng = _rng(sentence, "other engine")
    if others and rng.random() < OTHER_SHARE:
        weights = np.array([OTHERS[name][1] for name in others], float)
        planned.append(_other(rng, sentence, others[rng.choice(len(others), p=weights / weights.sum())]))
    return planned


def _own(sentence: str, version: int, shares: tuple[float, float, float]) -> Take:
    rng = _rng(sentence, version)
    kind = ("source", "named", "random")[rng.choice(3, p=shares)]
    if kind == "source":
        return Take(version, SOURCE, kind, None)
    if kind == "named":
        speaker = list(NAMED.values())[rng.integers(len(NAMED))]
    else:
        speaker = random_speaker(rng, _random_name(sentence, version), (FEMALE, MALE)[rng.integers(2)])
    return Take(version, SOURCE, kind, speaker, random_duration(rng))


def _other(rng: np.random.Generator, sentence: str, engine: str) -> Take:
    if rng.random() < OTHER_UNMODIFIED:
        return Take(2, engine, "source", None)
    speaker = random_speaker(rng, _random_name(sentence, 2), OTHERS[engine][0])
    return Take(2, engine, "random", speaker, random_duration(rng))


def _random_name(sentence: str, version: int) -> str:
    return f"random-{_digest(sentence, version).hex()[:10]}"


def _rng(sentence: str, purpose: int | str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(_digest(sentence, purpose)[:8], "big"))


def _digest(sentence: str, purpose: int | str) -> bytes:
    return hashlib.sha256(f"{purpose}: {' '.join(words(sentence))}".encode()).digest()
