"""Worker processes of a corpus tool: each holds its engines, and none outlives the tool."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_work: Callable[[Any], Any] | None = None


def results(
    make: Callable[..., Callable[[Any], Any]], arguments: tuple, items: Sequence[Any], jobs: int
) -> Iterator[Any]:
    """Yields `make(*arguments)(item)` for every item, as they finish.

    Args:
      make: builds what a process holds (engines, tables); called once in each process, so it must be importable.
      arguments: of `make`.
      items: what the processes work on.
      jobs: processes.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _start, (make, arguments)) as pool:
        yield from pool.imap_unordered(_apply, items)


def _start(make: Callable[..., Callable[[Any], Any]], arguments: tuple) -> None:
    global _work
    parent = os.getppid()

    def end_with_parent():  # a killed parent must leave no worker behind
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _work = make(*arguments)


def _apply(item: Any) -> Any:
    return _work(item)
