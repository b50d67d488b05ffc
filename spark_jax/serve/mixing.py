"""New voices between others.

A global token is a place in a small grid (finite scalar quantization), and the vector by which the decoder knows a
speaker is a linear map of all of them. So the weighted mean of the places is the weighted mean of these vectors, as far
as it lies on the grid: each coordinate is rounded to the next line of it. Semantic ids say what was said, not who
speaks; a mixed voice has none, and no transcript.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from spark_jax.config import SpeakerEncoderConfig
from spark_jax.errors import SparkError
from spark_jax.model_directory.voice import Voice


def mix_voices(voices: Sequence[Voice], weights: Sequence[float], config: SpeakerEncoderConfig) -> Voice:
    """Returns the voice in the weighted middle of others.

    Args:
      voices: at least one.
      weights: of each, above 0; only their proportions count.
      config: of the model whose voices they are.

    Raises:
      SparkError: a weight is not above 0 or not finite, or the model's tokens are residuals, whose places depend on
        each other.
    """
    if config.fsq_num_quantizers != 1:
        raise SparkError("voices cannot be mixed: the model's global tokens are residuals of each other")
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares) & (shares > 0)).all():
        raise SparkError(f"weights are {list(weights)}, expected finite numbers above 0")
    shares = shares / shares.max()  # their sum may not be finite
    places = np.stack([_places(voice.global_ids, config.fsq_levels) for voice in voices])
    middle = np.einsum("v,vtd->td", shares / shares.sum(), places)
    nearest = np.rint(middle).astype(np.int64)  # halves to even, not all of them upward
    return Voice((nearest @ _basis(config.fsq_levels)).astype(np.int32), np.zeros(0, np.int32))


def _places(ids: Int[np.ndarray, " tokens"], levels: tuple[int, ...]) -> Int[np.ndarray, "tokens dims"]:
    return ids[:, None] // _basis(levels) % np.asarray(levels)


def _basis(levels: tuple[int, ...]) -> Int[np.ndarray, " dims"]:
    """Returns what a step in each coordinate adds to an id; see `bicodec.fsq`."""
    return np.cumprod((1, *levels[:-1]))
