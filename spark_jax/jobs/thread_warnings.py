"""Warnings that belong to a job: they go into a list that the thread names, and not to the terminal."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from spark_jax.errors import one_line

_of_thread = threading.local()


def collect_into(messages: list[str] | None) -> None:
    """Names the list that this thread's warnings go into from now on; None: they are shown as usual."""
    _of_thread.messages = messages


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """Has the warnings for users of all threads go where `collect_into` says, until the block ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        show = warnings.showwarning

        def keep(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            messages = getattr(_of_thread, "messages", None)
            if messages is None or not issubclass(category, UserWarning):
                show(message, category, *place, **more)
            else:
                messages.append(one_line(message))

        warnings.showwarning = keep
        yield
