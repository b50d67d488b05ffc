"""When each phoneme is spoken in one engine's speech, from another's whose times are known (dynamic time warping).

Both say the same sentence. Compared are spectral envelopes, in which there is no pitch, with the formants of the one
moved to where the other's are.
"""

import numpy as np
from jaxtyping import Float, Int
from world_speech import FRAME_SECONDS, Speech, warp_envelope

from spark_jax.audio.mel import mel_filterbank

STEP = 2  # frames of the analysis that are one here: 10 ms
BANDS = 24
CEPSTRA = 12
MAX_FREQUENCY = 7500.0  # below half the lowest sample rate of an engine
FLOOR = 1e-12
LOUDNESS_WEIGHT = 2.0  # where there is a pause, cepstra are anything
DETOUR = 1.2  # cost of a step that goes on in one utterance only, beside half of one that goes on in both


def spectral_features(speech: Speech, formant: float = 1.0) -> Float[np.ndarray, "steps features"]:
    """Returns cepstra of the envelope and its loudness, of zero mean and unit variance over the utterance.

    Args:
      speech: an utterance taken apart.
      formant: factor that its formants are moved by first.
    """
    envelope = speech.envelope[::STEP]
    if formant != 1.0:
        envelope = warp_envelope(envelope, formant)
    bins = envelope.shape[1]
    bank = mel_filterbank(speech.sample_rate, 2 * (bins - 1), BANDS, 50.0, MAX_FREQUENCY)
    bands = np.log(np.sqrt(envelope) @ bank + FLOOR)
    places = np.arange(BANDS) + 0.5
    cosines = np.cos(np.pi * np.outer(places, np.arange(1, CEPSTRA + 1)) / BANDS)
    features = np.concatenate([bands @ cosines, LOUDNESS_WEIGHT * bands.mean(axis=1, keepdims=True)], axis=1)
    scale = features.std(axis=0) + 1e-6
    scale[-1] /= LOUDNESS_WEIGHT
    return (features - features.mean(axis=0)) / scale


def warping_path(
    ours: Float[np.ndarray, "steps features"], theirs: Float[np.ndarray, "others features"]
) -> tuple[Int[np.ndarray, " path"], Int[np.ndarray, " path"]]:
    """Finds the cheapest way through both from their first to their last steps, as pairs of steps."""
    distance = np.sqrt(
        np.maximum(np.sum(ours**2, 1)[:, None] + np.sum(theirs**2, 1)[None] - 2.0 * ours @ theirs.T, 0.0)
    )
    rows, columns = distance.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    # Pairs on an anti-diagonal depend on the two before it alone, so each is one vector operation.
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        cost = distance[i - 1, j - 1]
        both, one, other = total[i - 1, j - 1] + 2.0 * cost, total[i - 1, j], total[i, j - 1]
        total[i, j] = np.minimum(both, np.minimum(one, other) + DETOUR * cost)
    i, j, path = rows, columns, []
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        cost = distance[i - 1, j - 1]
        options = (total[i - 1, j - 1] + 2.0 * cost, total[i - 1, j] + DETOUR * cost, total[i, j - 1] + DETOUR * cost)
        best = int(np.argmin(options))
        i, j = i - (best != 2), j - (best != 1)
    first, second = np.array(path[::-1]).T
    return first, second


def transfer_bounds(bounds: list[float], known: Speech, other: Speech, formant_ratio: float = 1.0) -> list[float]:
    """Returns the times of `other` that correspond to times of `known`; they never decrease and lie within `other`.

    Args:
      bounds: seconds of `known`.
      known: speech whose times are known.
      other: the same sentence, spoken otherwise.
      formant_ratio: the formants of `other` relative to those of `known`.
    """
    ours, theirs = warping_path(spectral_features(known, formant_ratio), spectral_features(other))
    counts = np.bincount(ours)
    seconds = STEP * FRAME_SECONDS
    matched = np.bincount(ours, theirs) / counts * seconds
    times = np.interp(bounds, np.arange(len(matched)) * seconds, matched)
    return [round(float(time), 3) for time in np.maximum.accumulate(times)]
