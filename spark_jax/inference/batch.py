"""Many requests through one engine: iterators over their speech, in the order in which it is finished."""

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from spark_jax.errors import SparkError
from spark_jax.inference.speech_engine import Audio, SpeechEngine, SpeechJob

AHEAD = 2  # jobs that are at the engine, in multiples of its slots


def speak_all(
    engine: SpeechEngine, prepare: Callable[[Any], SpeechJob], requests: Iterable[Any], progress: bool = False
) -> Iterator[tuple[int, Audio]]:
    """Yields the number and the speech of each request, in the order in which it is finished.

    Requests are taken when the engine has room for them, so that their iterator may be endless. Where the iterator is
    given up, the engine drops what it has of it.

    Args:
      engine: speaks.
      prepare: makes a job of a request.
      requests: any number.
      progress: shows a bar with the audio seconds a second.

    Raises:
      SparkError: of `prepare`, for a request that cannot be spoken; the message begins with its number.
    """
    results: queue.SimpleQueue[tuple[int, Audio | Exception]] = queue.SimpleQueue()
    coming, running = enumerate(requests), {}
    total = len(requests) if hasattr(requests, "__len__") else None
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [engine.cancel(job) for job in running.values()])
        bar = stack.enter_context(tqdm(total=total, disable=not progress, unit=" texts"))
        seconds = 0.0
        while True:
            while len(running) < AHEAD * engine.slots and (following := next(coming, None)) is not None:
                number, request = following
                job = _prepared(prepare, number, request)
                running[number] = engine.submit(job, lambda found, number=number: results.put((number, found)))
            if not running:
                return
            number, found = results.get()
            del running[number]
            if isinstance(found, Exception):
                raise found
            seconds += len(found.samples) / found.sample_rate
            bar.update()
            bar.set_postfix_str(f"{seconds / max(bar.format_dict['elapsed'], 1e-9):.1f} s of audio a second")
            yield number, found


async def speak_all_async(
    engine: SpeechEngine, prepare: Callable[[Any], SpeechJob], requests: Iterable[Any]
) -> AsyncIterator[tuple[int, Audio]]:
    """Yields what `speak_all` does while the event loop goes on; many of them share the engine.

    Raises:
      SparkError: as `speak_all`.
    """
    loop, results = asyncio.get_running_loop(), asyncio.Queue()
    coming, running = enumerate(requests), {}

    def deliver(number: int, found: Audio | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(results.put_nowait, (number, found))

    try:
        while True:
            while len(running) < AHEAD * engine.slots and (following := next(coming, None)) is not None:
                number, request = following
                job = await asyncio.to_thread(_prepared, prepare, number, request)  # it may encode a reference
                running[number] = engine.submit(job, lambda found, number=number: deliver(number, found))
            if not running:
                return
            number, found = await results.get()
            del running[number]
            if isinstance(found, Exception):
                raise found
            yield number, found
    finally:
        for job in running.values():
            engine.cancel(job)


def _prepared(prepare: Callable[[Any], SpeechJob], number: int, request: Any) -> SpeechJob:
    try:
        return prepare(request)
    except SparkError as error:
        raise SparkError(f"requests[{number}]: {error}") from error
