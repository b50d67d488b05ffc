"""A conversation over a WebSocket: text comes in pieces, as another model writes it, and speech goes out.

The client begins with a JSON message {"type": "start"} with the fields of a request but its input, and goes on with
{"type": "text", "text": "…"}, {"type": "flush"} to have spoken what is there, and {"type": "end"}. What it gets: JSON
{"type": "started"}, binary messages of the format, {"type": "speech.text.span"} for each sentence,
{"type": "speech.audio.done"} or {"type": "error"} at the end.

A server that is to end lets the sentences that have come be spoken, and closes with code 1001.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from spark_jax.errors import SparkError
from spark_jax.inference.long_text import PAUSES, max_length, piece_seed
from spark_jax.inference.request import Request
from spark_jax.serve.delivery import caption_event, usage
from spark_jax.serve.encoders import Encoder
from spark_jax.serve.errors import as_api_error, bad_request, from_spark_error
from spark_jax.serve.requests import Prepared, prepare
from spark_jax.serve.schema import PARAMS, parse_json, read_object, read_speech
from spark_jax.serve.settings import ServerSettings
from spark_jax.serve.speaker import Speaker
from spark_jax.serve.voices import VoiceStore
from spark_jax.text.clean import has_speech
from spark_jax.text.split import split_text

_MESSAGES = {"text": ("type", "text"), "flush": ("type",), "end": ("type",)}
NORMAL, GOING_AWAY = 1000, 1001  # codes of RFC 6455 with which a conversation is closed
_NOTHING = "text"  # stands for the input of a request until there is one


class ClientGoneError(Exception):
    """The client has left."""


class ServerEndsError(Exception):
    """The server is to end."""


class Sentences:
    """Divides text that comes in pieces; what may still go on is kept."""

    def __init__(self, longest: int):
        """Args:
        longest: of a sentence, in the units of `split_text`.
        """
        self._longest, self._text = longest, ""

    @property
    def waiting(self) -> int:
        """Returns the number of characters that are kept."""
        return len(self._text)

    def push(self, text: str) -> list[str]:
        """Returns the sentences that are complete: another begins after them, or white space follows their end."""
        self._text += text
        # A capital shows whether the last sentence has an end, or goes on after an abbreviation.
        shown = f"{self._text} A" if self._text[-1:].isspace() else self._text
        pieces = split_text(shown, self._longest, join=False)[:-1]
        if pieces:
            self._text = self._text[pieces[-1].end :].lstrip()
        return [piece.text for piece in pieces if has_speech(piece.text)]

    def flush(self) -> list[str]:
        """Returns the rest."""
        pieces, self._text = split_text(self._text, self._longest, join=False), ""
        return [piece.text for piece in pieces if has_speech(piece.text)]


@dataclasses.dataclass
class Session:
    """One conversation.

    Attributes:
      speaker, voices, settings, model: see `requests.prepare`.
      receive: returns the text of the next message; raises `ClientGoneError`.
      send_json, send_bytes: send a message.
      ending: is set when the server is to end.
    """

    speaker: Speaker
    voices: VoiceStore
    settings: ServerSettings
    model: str
    receive: Callable[[], Awaitable[str]]
    send_json: Callable[[dict[str, Any]], Awaitable[None]]
    send_bytes: Callable[[bytes], Awaitable[None]]
    ending: asyncio.Event

    async def run(self) -> int:
        """Speaks until the client ends or leaves, or the server is to end; an error is told to the client.

        Returns:
          The code to close with.

        Raises:
          ClientGoneError: it has left.
        """
        try:
            with self.speaker.place():
                prepared = await self._start()
                sentences: asyncio.Queue[str | None] = asyncio.Queue()
                async with asyncio.TaskGroup() as tasks:
                    listener = tasks.create_task(self._listen(sentences))
                    await self._speak(prepared, sentences)
                    listener.cancel()
        except* ServerEndsError:
            pass  # before there was anything to say
        except* ClientGoneError as group:
            raise ClientGoneError from group
        except* Exception as group:
            error = group
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            await self.send_json({"type": "error", **as_api_error(error).envelope})
        return GOING_AWAY if self.ending.is_set() else NORMAL

    async def _start(self) -> Prepared:
        fields = await self._message()
        if fields.pop("type", None) != "start":
            raise bad_request("type", 'the first message has another type, expected "start"')
        if "input" in fields:
            raise bad_request("input", 'input is not of a "start": text comes in messages of its own')
        body = read_speech({"response_format": "pcm", **fields, "input": _NOTHING}, self.settings)
        if body.stream_format != "audio":
            raise bad_request("stream_format", "stream_format is sse, expected audio: this is a stream already")
        return await prepare(body, self.speaker, self.voices, self.settings, self.model)

    async def _listen(self, sentences: asyncio.Queue[str | None]) -> None:
        """Reads messages until the end, and then waits for the client to leave; the server's end is an end of both."""
        with contextlib.suppress(ServerEndsError):
            await self._take_text(sentences)
        sentences.put_nowait(None)
        with contextlib.suppress(ServerEndsError):
            while True:
                await self._receive()

    async def _take_text(self, sentences: asyncio.Queue[str | None]) -> None:
        text, kind = Sentences(max_length(self.speaker.tts.config)), None
        while kind != "end":
            message = await self._message()
            kind = message.get("type")
            if kind not in _MESSAGES:
                raise bad_request("type", f"type is {str(kind)[:64]!r}, expected one of {', '.join(_MESSAGES)}")
            read_object(message, dict.fromkeys(_MESSAGES[kind]), f"the message {kind}")
            found = []
            if kind == "text":
                if not isinstance(message.get("text"), str):
                    raise bad_request("text", "text is missing or no string")
                found = text.push(message["text"])
                if text.waiting + len(message["text"]) > self.settings.max_characters:
                    raise bad_request("text", f"more than {self.settings.max_characters} characters wait: end or flush")
            else:
                found = text.flush()
            for sentence in found:
                sentences.put_nowait(sentence)
            if sentences.qsize() > self.settings.max_characters // 8:
                raise bad_request("text", f"{sentences.qsize()} sentences wait to be spoken: send them more slowly")

    async def _speak(self, prepared: Prepared, sentences: asyncio.Queue[str | None]) -> None:
        """Speaks sentences until there are no more, and ends the conversation."""
        rate = self.speaker.tts.config.sample_rate
        encoder, request = prepared.encoder(rate), prepared.request
        await self.send_json(
            {
                "type": "started",
                "response_format": prepared.body.response_format,
                "sample_rate": encoder.sample_rate,
                "warnings": list(prepared.warnings),
            }
        )
        seconds, number, tokens = 0.0, 0, [0, 0]
        try:
            while (sentence := await sentences.get()) is not None:
                pause = np.zeros(round(PAUSES["sentence"] * rate) if number else 0, np.float32)
                await self._send(encoder.push(pause))
                seconds += len(pause) / rate / prepared.stretch
                seed = piece_seed(prepared.request.seed, number)
                try:
                    request = dataclasses.replace(request, text=sentence, seed=seed)
                except SparkError as error:
                    raise from_spark_error(error, PARAMS, "text") from error
                length, made, request = await self._sentence(request, encoder, seconds, number, prepared)
                seconds, number = seconds + length, number + 1
                tokens[0] += len(self.speaker.tts.tokenizer.encode_text(sentence))
                tokens[1] += made
            await self._send(encoder.finish())
        finally:
            encoder.close()
        await self.send_json({"type": "speech.audio.done", "usage": usage(*tokens)})

    async def _sentence(
        self, request: Request, encoder: Encoder, before: float, number: int, prepared: Prepared
    ) -> tuple[float, int, Request]:
        """Speaks a sentence; returns its seconds, its tokens, and the request for the next."""
        rate, stretch, latency = self.speaker.tts.config.sample_rate, prepared.stretch, prepared.body.latency
        samples, tokens, voice = 0, 0, None
        async with contextlib.aclosing(self.speaker.speak(request, latency)) as parts:
            async for part in parts:
                samples, tokens = samples + len(part.samples), tokens + part.tokens
                for caption in part.captions:
                    await self.send_json(caption_event(caption, rate, stretch, before, number))
                await self._send(encoder.push(part.samples))
                voice = part.voice
        if request.gender is not None:  # the voice that was made up speaks on
            request = dataclasses.replace(request, voice=voice, gender=None, pitch=None, speed=None)
        return samples / rate / stretch, tokens, request

    async def _send(self, content: bytes) -> None:
        if content:
            await self.send_bytes(content)

    async def _message(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self.settings.timeout):
                text = await self._receive()
        except TimeoutError as error:
            raise bad_request(None, f"no message came in {self.settings.timeout:g} s", "timeout") from error
        message = parse_json(text.encode("utf-8", "surrogatepass"))
        if not isinstance(message, dict):
            raise bad_request(None, "a message is no JSON object")
        return message

    async def _receive(self) -> str:
        """Returns what `receive` does, unless the server is to end."""
        if self.ending.is_set():
            raise ServerEndsError
        message, ending = asyncio.ensure_future(self.receive()), asyncio.ensure_future(self.ending.wait())
        try:
            await asyncio.wait((message, ending), return_when=asyncio.FIRST_COMPLETED)
            if message.done():
                return message.result()
            raise ServerEndsError
        finally:
            message.cancel()
            ending.cancel()
            await asyncio.wait((message, ending))
