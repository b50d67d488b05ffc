"""Many requests in one: a line of JSON for each, in the order in which they are finished."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from spark_jax.serve.delivery import usage
from spark_jax.serve.errors import ApiError, as_api_error, bad_request
from spark_jax.serve.requests import Prepared
from spark_jax.serve.schema import SpeechBody, read_object, read_speech
from spark_jax.serve.settings import ServerSettings
from spark_jax.serve.speaker import Speaker

MEDIA_TYPE = "application/x-ndjson"
_MOST_PARTS = 16  # of a mix


def read_batch(bodies: Any, settings: ServerSettings) -> list[SpeechBody | ApiError]:
    """Returns the requests of a batch; one that is at fault has its error in its place.

    Raises:
      ApiError: there are none, or too many.
    """
    if not isinstance(bodies, list) or not bodies:
        raise bad_request("requests", "requests is no list with something in it", "missing_field")
    if len(bodies) > settings.max_batch:
        raise bad_request("requests", f"requests has {len(bodies)} items, expected at most {settings.max_batch}")
    read: list[SpeechBody | ApiError] = []
    for body in bodies:
        try:
            item = read_speech(body, settings)
            if item.stream_format != "audio":
                raise bad_request("stream_format", "stream_format is sse, expected audio: a batch is no stream")
            read.append(item)
        except ApiError as error:
            read.append(error)
    return read


async def speak_batch(
    bodies: list[SpeechBody | ApiError], prepare: Callable[[SpeechBody], Awaitable[Prepared]], speaker: Speaker
) -> AsyncIterator[bytes]:
    """Yields a line for each request: its `index`, and `audio` in base64 with `usage`, or its `error`."""
    tasks = [asyncio.ensure_future(_line(number, body, prepare, speaker)) for number, body in enumerate(bodies)]
    try:
        for finished in asyncio.as_completed(tasks):
            yield await finished
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _line(
    number: int,
    body: SpeechBody | ApiError,
    prepare: Callable[[SpeechBody], Awaitable[Prepared]],
    speaker: Speaker,
) -> bytes:
    try:
        if isinstance(body, ApiError):
            raise body
        prepared = await prepare(body)
        encoder = prepared.encoder(speaker.tts.config.sample_rate)
        content, tokens = bytearray(), 0
        with contextlib.closing(encoder):
            async with contextlib.aclosing(speaker.speak(prepared.request, body.latency)) as parts:
                async for part in parts:
                    content += encoder.push(part.samples)
                    tokens += part.tokens
            content += encoder.finish()
        line = {
            "index": number,
            "audio": base64.b64encode(content).decode(),
            "response_format": body.response_format,
            "sample_rate": encoder.sample_rate,
            "usage": usage(prepared.input_tokens, tokens),
            "warnings": list(prepared.warnings),
        }
    except Exception as error:
        line = {"index": number, **as_api_error(error).envelope}
    return json.dumps(line).encode() + b"\n"


def read_mix(body: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
    """Returns the name of a new voice, and the names and weights of those that it is mixed of.

    Raises:
      ApiError: a field is missing or of another type.
    """
    name, parts = body.get("name"), body.get("mix")
    if not isinstance(name, str):
        raise bad_request("name", "name is missing or no string", "missing_field")
    if not isinstance(parts, list) or not 1 <= len(parts) <= _MOST_PARTS:
        raise bad_request("mix", f'mix is no list of 1 to {_MOST_PARTS} items {{"voice": …, "weight": …}}')
    read = []
    for part in parts:
        item = read_object(part, {"voice": None, "weight": None}, "an item of mix")
        voice, weight = item.get("voice"), item.get("weight", 1.0)
        if not isinstance(voice, str) or isinstance(weight, bool) or not isinstance(weight, int | float):
            raise bad_request("mix", "an item of mix has no voice, or a weight that is no number")
        if not 0 < weight <= 1e6:
            raise bad_request("mix", f"a weight of mix is {weight:g}, expected a number above 0, at most 1e6")
        read.append((voice, float(weight)))
    return name, read
