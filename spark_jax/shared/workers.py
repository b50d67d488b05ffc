"""Threads that work for as long as there is something to do, and end before the interpreter does.

A daemon thread that is inside JAX when the interpreter ends takes the process down with an abort, after all its work
was done; one that is no daemon would keep a process alive that nobody listens to any more.
"""

import atexit
import threading
import weakref
from collections.abc import Callable
from typing import Any

LIMIT = 10.0  # s that the end of the process waits for one

_wakes: weakref.WeakKeyDictionary[threading.Thread, Callable[[], Any]] = weakref.WeakKeyDictionary()
_ending = threading.Event()


def start(work: Callable[[], Any], name: str, wake: Callable[[], Any] = lambda: None) -> threading.Thread:
    """Starts a thread.

    Args:
      work: what it does; it looks at `ending` now and then.
      name: of the thread.
      wake: called at the end of the process, where `work` may wait for something.
    """
    if not _wakes:
        # Registered late, it runs before what JAX does at the end; again is no harm.
        atexit.unregister(_end)
        atexit.register(_end)
    thread = threading.Thread(target=work, name=name, daemon=True)
    _wakes[thread] = wake
    thread.start()
    return thread


def ending() -> bool:
    """Returns whether the process ends."""
    return _ending.is_set()


def _end() -> None:
    _ending.set()
    threads = list(_wakes.items())
    for _, wake in threads:
        wake()
    for thread, _ in threads:
        thread.join(LIMIT)
