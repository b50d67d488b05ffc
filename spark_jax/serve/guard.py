"""Who may use the API, and what is counted and said of every answer: a layer around the routes."""

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from spark_jax.serve.errors import ApiError
from spark_jax.serve.metrics import Metrics
from spark_jax.serve.settings import ServerSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# The page loads nothing from elsewhere, and nobody frames it. Speech that it has recorded or made is a blob.
_POLICY = (
    "default-src 'self'; media-src 'self' blob:; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_ROUTES = ("/v1/audio/speech", "/v1/audio/speech/batch", "/v1/audio/voices", "/v1/models", "/health", "/ready")


class Guard:
    """Checks keys and origins, counts answers, and adds the headers of safety."""

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics):
        """Args:
        app: the routes.
        settings: with the keys.
        metrics: what is counted.
        """
        self._app, self._metrics = app, metrics
        self._keys = [_digest(key.encode()) for key in settings.api_keys]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check(scope["path"], headers)
        except ApiError as error:
            self._metrics.errors.labels(error.code).inc()
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": error.message})
                return
            await self._refuse(error, scope, send)
            return
        await self._app(scope, receive, self._counted(scope, send))

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Lets a request of the API pass.

        Raises:
          ApiError: its key is none of ours, or it is of a page from elsewhere.
        """
        if not path.startswith("/v1/"):
            return
        # Another site's page could have a visitor's browser send forms here.
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
            raise ApiError(403, "the request is of a page of another origin", code="wrong_origin")
        if not self._keys:
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = _digest(key.strip()) if scheme.lower() == b"bearer" else b""
        # All are compared, each in constant time: how long it takes says nothing of a key.
        if not sum(hmac.compare_digest(given, own) for own in self._keys):
            message = "the API key is missing or wrong: send it as Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _refuse(self, error: ApiError, scope: Message, send: Send) -> None:
        body = json.dumps(error.envelope).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        send = self._counted(scope, send)
        await send({"type": "http.response.start", "status": error.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    def _counted(self, scope: Message, send: Send) -> Send:
        path = scope["path"]
        own = next((route for route in sorted(_ROUTES, reverse=True) if path == route), None)
        route = own or ("/v1/audio/voices" if path.startswith("/v1/audio/voices/") else "other")

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(route, str(message["status"])).inc()
                added = [(b"x-content-type-options", b"nosniff")]
                if not path.startswith("/v1/"):
                    added.append((b"content-security-policy", _POLICY.encode()))
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        return counted


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
