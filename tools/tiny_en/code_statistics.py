"""What semantic codes tell: of pitch and voicing, and of the code that comes next."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from spark_jax.wav2vec2.pitch import relative_pitch

Ids = Int[np.ndarray, "rows frames"]


def code_statistics(
    ids: Ids, frames: Mapping[str, np.ndarray], other_ids: Ids, other: Mapping[str, np.ndarray], codes: int = 512
) -> dict[str, float]:
    """Returns what one set of utterances teaches about codes, judged on another one.

    Args:
      ids: codes of the first set's frames.
      frames: their `f0` in Hz, 0 where unvoiced, and `mask`, False on padding.
      other_ids, other: the set to judge on.
      codes: how many there are.

    Returns:
      `f0_r2`: share of the variance of relative log F0 that a code's mean explains; `voicing_accuracy` of each code's
      majority; `next_nats`: entropy of a code given the last one (a table with half a count in each row, as an upper
      bound); `perplexity` of the codes.
    """
    pitch, voiced = _pitch(frames)
    kept = frames["mask"]
    counts = np.bincount(ids[kept], minlength=codes)
    voiced_counts = np.bincount(ids[voiced], minlength=codes)
    means = np.bincount(ids[voiced], pitch[voiced], codes) / np.maximum(voiced_counts, 1)
    majority = 2 * voiced_counts > counts

    other_pitch, other_voiced = _pitch(other)
    other_kept = other["mask"]
    errors = other_pitch[other_voiced] - means[other_ids[other_voiced]]
    correct = majority[other_ids[other_kept]] == other_voiced[other_kept]

    table = np.full((codes, codes), 0.5 / codes)
    np.add.at(table, _pairs(ids, kept), 1.0)
    log_table = np.log(table / table.sum(axis=1, keepdims=True))
    shares = counts[counts > 0] / counts.sum()
    return {
        "f0_r2": float(1 - np.mean(np.square(errors)) / np.mean(np.square(other_pitch[other_voiced]))),
        "voicing_accuracy": float(correct.mean()),
        "next_nats": float(-log_table[_pairs(other_ids, other_kept)].mean()),
        "perplexity": float(np.exp(-np.sum(shares * np.log(shares)))),
    }


def _pitch(
    frames: Mapping[str, np.ndarray],
) -> tuple[Float[np.ndarray, "rows frames"], Bool[np.ndarray, "rows frames"]]:
    relative, voiced = relative_pitch(jnp.asarray(frames["f0"]), jnp.asarray(frames["mask"]))
    return np.asarray(relative), np.asarray(voiced)


def _pairs(ids: Ids, mask: Bool[np.ndarray, "rows frames"]) -> tuple[np.ndarray, np.ndarray]:
    both = mask[:, 1:] & mask[:, :-1]
    return ids[:, :-1][both], ids[:, 1:][both]
