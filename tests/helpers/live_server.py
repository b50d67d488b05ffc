"""A server on a port of this machine, in a thread: for clients that know nothing but HTTP."""

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn

from spark_jax.serve.run import listen


@contextlib.contextmanager
def running(app) -> Iterator[str]:
    """Yields the address of a server that runs an application, when it is ready."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 300
        while not (server.started and app.state.api.speaker.ready):
            assert thread.is_alive()
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
