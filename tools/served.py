"""Runs `spark-jax serve` beside a tool."""

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import NamedTuple

WARM = 600.0  # s that a server has to warm up


class Served(NamedTuple):
    """A server: its address, and the number of its process."""

    url: str
    process: int


@contextlib.contextmanager
def served(options: Sequence[str] = ()) -> Iterator[Served]:
    """Yields a server that is ready; it ends with the block.

    Args:
      options: of `spark-jax serve`.
    """
    command = [sys.executable, "-m", "spark_jax.cli.main", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        if ": " not in line:
            raise RuntimeError("the server did not start")
        url = line.rpartition(": ")[2].strip()
        wait_until_ready(url, process)
        yield Served(url, process.pid)
    finally:
        process.terminate()
        process.wait(120)


def wait_until_ready(url: str, process: subprocess.Popen) -> None:
    """Waits until a server takes requests."""
    end = time.monotonic() + WARM
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if urllib.request.urlopen(f"{url}/ready", timeout=5).status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url}: the server was not ready in time")
