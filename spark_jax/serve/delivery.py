"""Speech on its way to a client: bytes of a format, server-sent events, or lines of a batch."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

from spark_jax.serve.encoders import Encoder
from spark_jax.serve.errors import as_api_error
from spark_jax.serve.parts import Caption, Part

EVENTS = "text/event-stream"


async def audio_bytes(parts: AsyncIterator[Part], encoder: Encoder) -> AsyncIterator[bytes]:
    """Yields the bytes of a format; the first comes with the first sound."""
    try:
        async for part in parts:
            if content := encoder.push(part.samples):
                yield content
        if content := encoder.finish():
            yield content
    finally:
        encoder.close()


async def events(
    parts: AsyncIterator[Part], encoder: Encoder, input_tokens: int, model_rate: int, captions: bool, stretch: float
) -> AsyncIterator[bytes]:
    """Yields OpenAI's events: `speech.audio.delta` with bytes of the format in base64, `speech.audio.done` with usage.

    With captions each piece of the text comes as `speech.text.span`: when it begins, and with its end when that is
    known. An error in the middle is an event `error`, the last one.
    """
    output_tokens, first = 0, True
    try:
        async for part in parts:
            first = False
            output_tokens += part.tokens
            if captions:
                for caption in part.captions:
                    yield event(caption_event(caption, model_rate, stretch))
            if content := encoder.push(part.samples):
                yield event({"type": "speech.audio.delta", "audio": base64.b64encode(content).decode()})
        if content := encoder.finish():
            yield event({"type": "speech.audio.delta", "audio": base64.b64encode(content).decode()})
        yield event({"type": "speech.audio.done", "usage": usage(input_tokens, output_tokens)})
    except Exception as error:
        if first:
            raise  # nothing is on its way: the answer has a status of its own
        yield event({"type": "error", **as_api_error(error).envelope})
    finally:
        encoder.close()


def event(content: dict[str, Any]) -> bytes:
    """Returns a server-sent event."""
    return f"data: {json.dumps(content)}\n\n".encode()


def usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    """Returns the counts of a request's tokens, as OpenAI names them."""
    total = input_tokens + output_tokens
    return {"input_tokens": input_tokens, "output_tokens": output_tokens, "total_tokens": total}


def caption_event(
    caption: Caption, rate: int, stretch: float, before: float = 0.0, index: int | None = None
) -> dict[str, Any]:
    """Returns the event that says when a text is heard, in seconds.

    Args:
      caption: the text and its samples.
      rate: of the samples, in Hz.
      stretch: by how much the speech is faster than they are.
      before: seconds of speech before the first sample.
      index: of the text; None: the caption's.
    """
    start, end = (
        None if place is None else round(before + place / rate / stretch, 3) for place in (caption.start, caption.end)
    )
    number = caption.index if index is None else index
    return {"type": "speech.text.span", "index": number, "text": caption.text, "start": start, "end": end}
