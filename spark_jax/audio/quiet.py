"""Keeps C libraries from writing to standard error, where a damaged MP3 file makes libmpg123 print line after line."""

import contextlib
import os
import threading
from collections.abc import Iterator

_STANDARD_ERROR = 2
_lock = threading.Lock()  # of two threads at once, one would restore what the other had silenced


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Sends what any code of this process writes to descriptor 2 in the meantime to nowhere; keep it short."""
    with _lock, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a process without a standard error
            saved = os.dup(_STANDARD_ERROR)
            stack.callback(os.close, saved)
            null = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, null)
            os.dup2(null, _STANDARD_ERROR)
            stack.callback(os.dup2, saved, _STANDARD_ERROR)
        yield
