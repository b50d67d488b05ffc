"""What a request gets: speech, with the tokens that it was made from."""

import dataclasses
import os

import numpy as np
from jaxtyping import Float, Int

from spark_jax.audio.write import write_audio
from spark_jax.inference.checks import Finding
from spark_jax.inference.long_text import Span


@dataclasses.dataclass(frozen=True, eq=False)
class Audio:
    """Speech, and the tokens that it was made from.

    Attributes:
      samples: of the whole text.
      sample_rate: Hz.
      semantic_ids: of all pieces of the text, one after the other; the pauses between them have none.
      global_ids: of the voice.
      reached_limit: cut off at the longest length allowed: the model had not come to an end.
      spans: where each piece of the text is heard; a short text is one piece.
      checks: what is wrong with the speech of each piece, as far as can be told without listening.
    """

    samples: Float[np.ndarray, " time"]
    sample_rate: int
    semantic_ids: Int[np.ndarray, " tokens"]
    global_ids: Int[np.ndarray, " global"]
    reached_limit: bool
    spans: tuple[Span, ...] = ()
    checks: tuple[Finding, ...] = ()

    def save(self, path: str | os.PathLike[str], format: str | None = None) -> None:
        """Writes the speech to a file, in the format of its extension or in `format`; see `write_audio`.

        Raises:
          SparkError: the format is unknown, or the file cannot be written.
        """
        write_audio(path, self.samples, self.sample_rate, format)


@dataclasses.dataclass(frozen=True, eq=False)
class Speech:
    """One piece of a text, as the model said it; the fields are those of `Audio`."""

    samples: Float[np.ndarray, " time"]
    semantic_ids: Int[np.ndarray, " tokens"]
    global_ids: Int[np.ndarray, " global"]
    reached_limit: bool
