"""The speech of a request in parts, as the server gives it out."""

import dataclasses
from collections.abc import AsyncIterator

import numpy as np
from jaxtyping import Float

from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.model_directory.voice import Voice


@dataclasses.dataclass(frozen=True)
class Caption:
    """Where a piece of the text is heard.

    Attributes:
      index: of the piece.
      text: of the piece.
      start, end: its samples; the end is None while it is spoken.
    """

    index: int
    text: str
    start: int
    end: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of a speech.

    Attributes:
      samples: it follows the part before without a gap; the last part has none.
      captions: what is known since the part before, each piece twice: when it begins, and when it has ended.
      tokens: semantic tokens of the pieces that have ended.
      voice: whose it is; None: it is made up, and the first piece has not ended.
    """

    samples: Float[np.ndarray, " time"]
    captions: tuple[Caption, ...]
    tokens: int
    voice: Voice | None


async def stream_parts(tts: SparkTTS, request: Request, latency: str) -> AsyncIterator[Part]:
    """Yields the speech of a request while it is made; closing it drops what is not made yet.

    Raises:
      SparkError: it cannot be spoken.
    """
    hop = tts.config.latent_hop_length
    begun = ended = 0

    def captions_of_ended() -> list[Caption]:
        nonlocal ended
        fresh = [
            Caption(number, span.text, span.start, span.end)
            for number, span in enumerate(stream.spans[ended:], start=ended)
        ]
        ended += len(fresh)
        return fresh

    def tokens_of(captions: list[Caption]) -> int:
        return sum((caption.end - caption.start) // hop for caption in captions)

    async with tts.stream_async(request, latency) as stream:
        async for chunk in stream:
            over = captions_of_ended()
            fresh = []
            if chunk.piece >= begun:
                begun = chunk.piece + 1
                fresh = [Caption(chunk.piece, chunk.text, chunk.start)]
            yield Part(chunk.samples, (*over, *fresh), tokens_of(over), stream.voice)
        over = captions_of_ended()
        yield Part(np.zeros(0, np.float32), tuple(over), tokens_of(over), stream.voice)
