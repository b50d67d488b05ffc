"""The speech of a request in parts, as the server gives it out."""

import dataclasses
from collections.abc import AsyncIterator

import numpy as np
from jaxtyping import Float, Int

from spark_jax.inference.long_text import Span
from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of a speech.

    Attributes:
      samples: it follows the part before without a gap.
      spans: texts whose place in the whole speech is known now, in samples.
      tokens: semantic tokens that it was made from.
      global_ids: of the voice.
    """

    samples: Float[np.ndarray, " time"]
    spans: tuple[Span, ...]
    tokens: int
    global_ids: Int[np.ndarray, " global"]


async def stream_parts(tts: SparkTTS, request: Request) -> AsyncIterator[Part]:
    """Yields the speech of a request while it is made; closing it drops what is not made yet."""
    async for _, audio in tts.synthesize_batch_async([request]):
        if isinstance(audio, Exception):
            raise audio
        yield Part(audio.samples, audio.spans, len(audio.semantic_ids), audio.global_ids)
