"""Pitch at the rate of semantic tokens: one value for every 20 ms of an utterance, in tenths of a hertz."""

import numpy as np
from jaxtyping import Float, Int

TOKEN_SECONDS = 0.02
UNIT = 0.1  # Hz


def pitch_track(contour: Float[np.ndarray, " frames"], frame_seconds: float, tokens: int) -> Int[np.ndarray, " tokens"]:
    """Returns the pitch of each token, in units of `UNIT`; 0 where most of it is unvoiced.

    Args:
      contour: F0 in Hz, 0 where unvoiced; frame i is centered at i · `frame_seconds`.
      tokens: how many; token i lasts from i to i + 1 times TOKEN_SECONDS.
    """
    place = (np.arange(len(contour)) * frame_seconds / TOKEN_SECONDS).astype(int)
    place = np.minimum(place, tokens - 1)
    voiced = contour > 0
    frames = np.bincount(place, minlength=tokens)
    counts = np.bincount(place[voiced], minlength=tokens)
    sums = np.bincount(place[voiced], np.log(contour[voiced]), minlength=tokens)
    mean = np.exp(sums / np.maximum(counts, 1))
    return np.where(2 * counts > frames, np.round(mean / UNIT), 0).astype(int)
