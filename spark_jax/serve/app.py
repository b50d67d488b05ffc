"""The routes of the server. No other file knows the web framework."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from spark_jax.inference.synthesize import SparkTTS
from spark_jax.serve import batch, delivery, metrics, voices
from spark_jax.serve.errors import ApiError, as_api_error, bad_request
from spark_jax.serve.guard import Guard
from spark_jax.serve.requests import Prepared, prepare
from spark_jax.serve.schema import check_consent, check_size, parse_json, read_object, read_speech
from spark_jax.serve.session import GOING_AWAY, ClientGoneError, Session
from spark_jax.serve.settings import ServerSettings
from spark_jax.serve.speaker import Speaker
from spark_jax.shared.extra import needs_extra

with needs_extra("serve"):
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import FileResponse, Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.types import Receive, Scope, Send
    from starlette.websockets import WebSocket, WebSocketDisconnect

PAGE = Path(__file__).parent / "page"
_FIELD_BYTES = 2**16  # of a form, beside its file
_JSON = "application/json"


def create_app(
    tts: SparkTTS,
    settings: ServerSettings = ServerSettings(),  # noqa: B008 (frozen)
    *,
    model: str = "spark-jax",
    voices_directory: Path | None = None,
) -> Starlette:
    """Returns the server as an ASGI application; it warms up when it is started.

    Args:
      tts: a model with all its parts; used by nobody else from now on.
      settings: limits and keys.
      model: its name for clients.
      voices_directory: where voices of clients are kept; None: in memory.

    Raises:
      SparkError: the folder cannot be made, or the extra is not installed.
    """
    api = Api(tts, settings, model, voices_directory)
    routes = [
        Route("/v1/audio/speech", api.speech, methods=["POST"]),
        Route("/v1/audio/speech/batch", api.speech_batch, methods=["POST"]),
        WebSocketRoute("/v1/audio/speech/stream", api.speech_stream),
        Route("/v1/audio/voices", api.list_voices, methods=["GET"]),
        Route("/v1/audio/voices", api.add_voice, methods=["POST"]),
        Route("/v1/audio/voices/{voice_id}", api.delete_voice, methods=["DELETE"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{model_id}", api.one_model, methods=["GET"]),
        Route("/health", api.health, methods=["GET"]),
        Route("/ready", api.ready, methods=["GET"]),
        Route("/metrics", api.metrics, methods=["GET"]),
        *(Route(f"/{file.name}", _page(file), methods=["GET"]) for file in sorted(PAGE.iterdir())),
        Route("/", _page(PAGE / "index.html"), methods=["GET"]),
    ]
    handlers = {ApiError: _tell, HTTPException: _tell_http, ClientDisconnect: _tell_nobody, Exception: _tell_failure}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=api.lifespan)
    app.add_middleware(Guard, settings=settings, metrics=api.speaker.metrics)
    app.state.api = api
    return app


def _page(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """Returns what answers with a file of the page; no other file can be asked for."""

    async def answer(request: Request) -> Response:
        return FileResponse(file, headers={"cache-control": "no-cache"})

    return answer


class Api:
    """What the routes answer."""

    def __init__(self, tts: SparkTTS, settings: ServerSettings, model: str, voices_directory: Path | None):
        """See `create_app`."""
        self.tts, self.settings, self.model = tts, settings, model
        self.speaker = Speaker(tts, settings)
        self.voices = voices.VoiceStore(tts.config, tts.default_voice, voices_directory, settings.max_voices)
        self._ending, self._conversations = asyncio.Event(), 0

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Warms the model up beside the routes that need none."""
        warming = asyncio.create_task(self.speaker.warm_up())
        yield
        warming.cancel()
        await asyncio.wait([warming])

    async def end_conversations(self, seconds: float) -> None:
        """Takes no more requests, and waits until the sentences that have come over WebSockets are spoken.

        Args:
          seconds: to wait at most.
        """
        self.speaker.close()
        self._ending.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._conversations:
                    await asyncio.sleep(0.02)

    async def speech(self, request: Request) -> Response:
        """Speaks a text, by OpenAI's contract."""
        body = read_speech(await self._json(request, uploads=1), self.settings)
        self.speaker.check_ready()
        prepared = await self._prepare(body)
        return Live(self._speech(prepared), self.settings.stall, self.speaker.metrics)

    async def _speech(self, prepared: Prepared) -> AsyncIterator[Any]:
        body, rate = prepared.body, self.tts.config.sample_rate
        with self.speaker.place():
            encoder = prepared.encoder(rate)
            headers = {"spark-jax-sample-rate": str(encoder.sample_rate), **_warnings(prepared.warnings)}
            async with contextlib.aclosing(self.speaker.speak(prepared.request, body.latency)) as parts:
                if body.stream_format == "sse":
                    sent = delivery.events(parts, encoder, prepared.input_tokens, rate, body.captions, prepared.stretch)
                    media_type = delivery.EVENTS
                else:
                    sent, media_type = delivery.audio_bytes(parts, encoder), encoder.media_type
                async with contextlib.aclosing(sent):
                    first = True
                    async for content in sent:
                        if first:  # an error before is an answer of its own
                            yield media_type, headers
                        first = False
                        yield content

    async def speech_batch(self, request: Request) -> Response:
        """Speaks many texts; a line of JSON for each, when it is finished."""
        body = read_object(await self._json(request, uploads=2), {"requests": None})
        bodies = batch.read_batch(body.get("requests"), self.settings)
        self.speaker.check_ready()

        async def lines() -> AsyncIterator[Any]:
            with self.speaker.place(len(bodies)):
                yield batch.MEDIA_TYPE, {}
                async with contextlib.aclosing(batch.speak_batch(bodies, self._prepare, self.speaker)) as spoken:
                    async for line in spoken:
                        yield line

        return Live(lines(), self.settings.stall, self.speaker.metrics)

    async def speech_stream(self, socket: WebSocket) -> None:
        """Speaks text that comes in pieces; see `session`."""
        await socket.accept()

        async def receive() -> str:
            try:
                return await socket.receive_text()
            except WebSocketDisconnect as error:
                raise ClientGoneError from error
            except KeyError as error:  # bytes came
                raise bad_request(None, "a message is binary, expected JSON text") from error

        async def send(method: Callable[[Any], Awaitable[None]], content: Any) -> None:
            try:
                async with asyncio.timeout(self.settings.stall):
                    await method(content)
            except (WebSocketDisconnect, TimeoutError, RuntimeError, OSError) as error:  # closed, or takes nothing
                raise ClientGoneError from error

        session = Session(
            self.speaker,
            self.voices,
            self.settings,
            self.model,
            receive,
            lambda content: send(socket.send_text, json.dumps(content)),
            lambda content: send(socket.send_bytes, content),
            self._ending,
        )
        self._conversations += 1
        try:
            with contextlib.suppress(ClientGoneError, RuntimeError, OSError):
                code = await session.run()
                await socket.close(code, "the server ends" if code == GOING_AWAY else None)
        finally:
            self._conversations -= 1

    async def list_voices(self, request: Request) -> Response:
        """Lists the voices that a request may name."""
        made_up = list(voices.MADE_UP) if self.tts.config.text.acts_on("gender") else []
        found = [stored.description for stored in self.voices.all()]
        return _json({"object": "list", "data": found, "made_up": made_up})

    async def add_voice(self, request: Request) -> Response:
        """Keeps the voice of an upload, or a mix of others."""
        self.speaker.check_ready()
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            body = read_object(await self._json(request), {"name": None, "mix": None})
            name, parts = batch.read_mix(body)
            stored = await asyncio.to_thread(self.voices.mix, name, parts)
            return _json(stored.description)
        fields, content = await self._form(request)
        consent = check_consent(fields.get("consent"))
        name, transcript = fields.get("name"), fields.get("transcript") or None
        if name is None:
            raise bad_request("name", "name is missing", "missing_field")
        self.voices.check_name(name)
        if content is None:
            raise bad_request("audio_sample", "audio_sample is missing: a recording of the voice", "missing_field")
        check_size(content, "audio_sample", self.settings)
        voice, told = await self.speaker.clone(content, transcript, "audio_sample")
        if not self.tts.config.text.acts_on("cloning"):
            told.append("the model has not learned to clone voices; its own voice speaks")
        stored = await asyncio.to_thread(self.voices.add, name, voice, consent)
        return _json(stored.description | {"warnings": told})

    async def delete_voice(self, request: Request) -> Response:
        """Forgets a voice."""
        stored = await asyncio.to_thread(self.voices.delete, request.path_params["voice_id"])
        return _json({"id": stored.id, "object": "audio.voice.deleted", "deleted": True})

    async def models(self, request: Request) -> Response:
        """Lists the one model."""
        return _json({"object": "list", "data": [self._model]})

    async def one_model(self, request: Request) -> Response:
        """Describes the model."""
        name = request.path_params["model_id"]
        if name != self.model:
            raise ApiError(404, f"model {name[:64]!r} is unknown", param="model", code="model_not_found")
        return _json(self._model)

    async def health(self, request: Request) -> Response:
        """Says whether the process is well."""
        return _json({"status": self.speaker.state}, 503 if self.speaker.state == "failed" else 200)

    async def ready(self, request: Request) -> Response:
        """Says whether requests are taken."""
        return _json({"status": self.speaker.state}, 200 if self.speaker.ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Returns the counters."""
        return Response(self.speaker.metrics.text(), media_type=metrics.MEDIA_TYPE)

    @property
    def _model(self) -> dict[str, Any]:
        text, settings = self.tts.config.text, self.settings
        own = {
            "sample_rate": self.tts.config.sample_rate,
            "languages": list(text.languages),
            "controls": [name for name in ("gender", "pitch", "speed", "cloning") if text.acts_on(name)],
            "max_characters": settings.max_characters,
            "max_upload": settings.max_upload,
            "max_upload_seconds": settings.max_upload_seconds,
        }
        return {"id": self.model, "object": "model", "created": 0, "owned_by": "spark-jax", "spark_jax": own}

    async def _prepare(self, body: Any) -> Prepared:
        return await prepare(body, self.speaker, self.voices, self.settings, self.model)

    async def _json(self, request: Request, uploads: int = 0) -> Any:
        """Returns a body of JSON, which may hold recordings in base64."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise ApiError(415, f"content-type: expected {_JSON}", code="unsupported_media_type")
        limit = self.settings.max_body + uploads * (self.settings.max_upload * 4 // 3 + 4)
        return parse_json(await self._body(request, limit))

    async def _form(self, request: Request) -> tuple[dict[str, str], bytes | None]:
        """Returns fields and the recording of a form, which never lies on a disk."""
        content = await self._body(request, self.settings.max_upload + 8 * _FIELD_BYTES)

        async def body() -> AsyncIterator[bytes]:
            yield content
            yield b""

        parser = MultiPartParser(request.headers, body(), max_files=1, max_fields=8, max_part_size=_FIELD_BYTES)
        parser.spool_max_size = len(content) + 1
        try:
            form = await parser.parse()
        except (MultiPartException, ValueError, LookupError, AttributeError) as error:
            message = getattr(error, "message", None) or error
            raise bad_request(None, f"the body is no form of multipart/form-data: {message}") from error
        try:
            fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
            files = {name: value for name, value in form.multi_items() if not isinstance(value, str)}
            for name in [*fields, *files]:
                if name not in ("name", "transcript", "consent", "audio_sample"):
                    raise bad_request(name[:64], f"unknown field {name!r}", "unknown_field")
            recording = await files["audio_sample"].read() if "audio_sample" in files else None
        finally:
            await form.close()
        return fields, recording

    async def _body(self, request: Request, limit: int) -> bytes:
        content = bytearray()
        try:
            async with asyncio.timeout(self.settings.timeout):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > limit:
                        raise ApiError(413, f"the body has more than {limit} bytes", code="too_large")
        except TimeoutError as error:
            raise ApiError(408, f"the body did not come in {self.settings.timeout:g} s", code="timeout") from error
        return bytes(content)


class Live(Response):
    """A response that is made while it is sent; a client that leaves, or takes nothing, ends the work for it."""

    def __init__(self, content: AsyncIterator[Any], stall: float, counters: metrics.Metrics):
        """Args:
        content: yields the media type and headers first, then bytes; an error before them is the answer.
        stall: seconds that a client may take nothing.
        counters: count clients that leave.
        """
        self._content, self._stall, self._metrics = content, stall, counters
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        work = asyncio.ensure_future(self._answer(scope, receive, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            else:
                self._metrics.vanished.inc()
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait((gone, work))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._content) as content:
            try:
                media_type, headers = await anext(content)
            except Exception as error:
                await _json_error(as_api_error(error), self._metrics)(scope, receive, send)
                return
            head = Response(media_type=media_type, headers=headers)
            raw = [(name, value) for name, value in head.raw_headers if name != b"content-length"]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            try:
                async for part in content:
                    async with asyncio.timeout(self._stall):
                        await send({"type": "http.response.body", "body": part, "more_body": True})
            except Exception as error:
                self._metrics.errors.labels(as_api_error(error).code or "broken").inc()
                return  # without an end: the connection breaks off, and the client knows that something is missing
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _warnings(messages: tuple[str, ...]) -> dict[str, str]:
    """Returns the header that tells what of a request has no effect."""
    text = " | ".join(messages)[:1000].encode("ascii", "backslashreplace").decode()
    return {"spark-jax-warnings": " ".join(text.split())} if messages else {}


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, _JSON)  # ASCII: text of clients may hold half characters


def _json_error(error: ApiError, counters: metrics.Metrics | None) -> Response:
    if counters is not None:
        counters.errors.labels(error.code or str(error.status)).inc()
    return _json(error.envelope, error.status, error.headers)


async def _tell(request: Request, error: ApiError) -> Response:
    return _json_error(error, request.app.state.api.speaker.metrics)


async def _tell_http(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}"
    wrong = ApiError(error.status_code, message, headers=error.headers)
    return await _tell(request, wrong)


async def _tell_nobody(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)


async def _tell_failure(request: Request, error: Exception) -> Response:
    return await _tell(request, as_api_error(error))
