"""A model that speaks without JAX: as many samples as the text has letters, in an order of its own."""

import numpy as np

from spark_jax.errors import SparkError
from spark_jax.inference.audio import Audio
from spark_jax.inference.long_text import Span
from spark_jax.model_directory.voice import Voice


def audio(request):
    """The speech of a request: it depends on text and seed alone."""
    samples = np.random.default_rng(request.seed).uniform(-0.5, 0.5, 100 * len(request.text)).astype(np.float32)
    ids = np.arange(len(request.text), dtype=np.int32)
    return Audio(samples, 16_000, ids, np.zeros(2, np.int32), False, (Span(request.text, 0, len(samples)),))


class FakeTTS:
    """Stands for a loaded `SparkTTS`; texts say what happens.

    Attributes:
      spoken: texts, as they were asked for.
      voices: recordings that were read.
    """

    def __init__(self):
        self.spoken: list[str] = []
        self.voices: list[str] = []
        self.config = None

    def voice(self, path, transcript=None):
        self.voices.append(str(path))
        return Voice(np.zeros(2, np.int32), np.zeros(0, np.int32), None)

    def synthesize_batch(self, requests):
        return self._speak(requests)

    def _speak(self, requests):
        waiting = []
        for number, request in enumerate(requests):
            self.spoken.append(request.text)
            if "crash" in request.text:
                raise RuntimeError("out of memory")
            waiting.append((number, SparkError("no room") if "impossible" in request.text else audio(request)))
            if len(waiting) == 3:
                yield waiting.pop(1)
        yield from reversed(waiting)
