"""A server on a port of this machine, in a thread: for clients that know nothing but HTTP."""

import contextlib
import threading
import time
from collections.abc import Iterator

from spark_jax.serve.run import DrainingServer, listen


@contextlib.contextmanager
def running(app, drain=5.0) -> Iterator[str]:
    """Yields the address of a server that runs an application, when it is ready; leaving it is its end."""
    listener = listen("127.0.0.1", 0)
    server = DrainingServer(app, drain)
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
