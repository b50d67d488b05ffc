"""Runs the server until it is told to end; what is at work then is finished first."""

import signal
import socket
import threading
import time
import warnings
from typing import Any

from spark_jax.errors import SparkError
from spark_jax.serve.app import create_app  # noqa: F401 (callers take both from here)
from spark_jax.shared.extra import needs_extra

with needs_extra("serve"):
    import uvicorn

# Seconds that an idle connection stays open. Clients keep one for five seconds, as uvicorn does by itself: one that
# sends its next request while the server hangs up sees an error. The server is to be the more patient of the two.
KEEP_ALIVE = 75


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens, before the long work starts.

    Args:
      host: a name or an address.
      port: 0: one that is free.

    Raises:
      SparkError: the address is taken, or none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        raise SparkError(f"{host}:{port}: cannot listen there ({getattr(error, 'strerror', None) or error})") from error


class DrainingServer(uvicorn.Server):
    """A server that lets what is at work finish, conversations over WebSockets, too, which uvicorn would cut off."""

    def __init__(self, app: Any, drain: float):
        """Args:
        app: of `create_app`.
        drain: seconds in which all must be finished, when the server is to end.
        """
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=round(drain),
            timeout_keep_alive=KEEP_ALIVE,
            ws_max_size=2**20,
            server_header=False,
        )
        super().__init__(config)
        self._api, self._drain = app.state.api, drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the door, waits for conversations, then for all other requests."""
        for server in self.servers:
            server.close()
        begin = time.monotonic()
        await self._api.end_conversations(self._drain)
        self.config.timeout_graceful_shutdown = max(1, round(self._drain - (time.monotonic() - begin)))
        await super().shutdown(sockets)


def run(app: object, listener: socket.socket, drain: float) -> None:
    """Serves until SIGTERM or SIGINT: then nobody is let in, and requests at work have `drain` seconds to finish.

    Args:
      app: of `create_app`.
      listener: of `listen`.
      drain: seconds.
    """
    # Requests' warnings are told to the clients; the default filter would remember each text for good.
    warnings.simplefilter("ignore", UserWarning)
    server = DrainingServer(app, drain)
    if threading.current_thread() is threading.main_thread():
        # uvicorn raises the signal again when it has ended, for those who ask what ended the process.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
    server.run(sockets=[listener])
