"""Many requests through one engine: iterators over their speech, in the order in which it is finished.

A request that cannot be spoken has its error in the place of its speech, and the others go on. An error of the device
is raised: it concerns all.
"""

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from spark_jax.errors import SparkError
from spark_jax.inference.audio import Audio, Speech
from spark_jax.inference.speech_engine import SpeechEngine, SpeechJob

AHEAD = 2  # requests that are at the engine, in multiples of its slots

# Yields the job of each piece of a request's text, takes the speech of it, and returns the whole.
Pieces = Generator[SpeechJob, Speech | None, Audio]


def speak_all(
    engine: SpeechEngine, divide: Callable[[Any], Pieces], requests: Iterable[Any], progress: bool = False
) -> Iterator[tuple[int, Audio | SparkError]]:
    """Yields the number of each request and its speech, or why there is none, in the order in which they are finished.

    Requests are taken when the engine has room for them, so that their iterator may be endless. Where the iterator is
    given up, the engine drops what it has of it.

    Args:
      engine: speaks.
      divide: makes pieces of a request.
      requests: any number.
      progress: shows a bar with the audio seconds a second.
    """
    results: queue.SimpleQueue[tuple[int, Speech | Exception]] = queue.SimpleQueue()
    running = _Running(engine, divide, requests, lambda number, found: results.put((number, found)))
    total = len(requests) if hasattr(requests, "__len__") else None
    with contextlib.closing(running), tqdm(total=total, disable=not progress, unit=" texts") as bar:
        seconds = 0.0
        while True:
            if running.has_room and (number := running.take()) is not None:
                found = None
            elif running.jobs:
                number, found = results.get()
            else:
                return
            answer = running.go_on(number, found)
            if answer is None:
                continue
            if isinstance(answer, Audio):
                seconds += len(answer.samples) / answer.sample_rate
            bar.update()
            bar.set_postfix_str(f"{seconds / max(bar.format_dict['elapsed'], 1e-9):.1f} s of audio a second")
            yield number, answer


async def speak_all_async(
    engine: SpeechEngine, divide: Callable[[Any], Pieces], requests: Iterable[Any]
) -> AsyncIterator[tuple[int, Audio | SparkError]]:
    """Yields what `speak_all` does while the event loop goes on; many of them share the engine."""
    loop, results = asyncio.get_running_loop(), asyncio.Queue()

    def deliver(number: int, found: Speech | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(results.put_nowait, (number, found))

    with contextlib.closing(_Running(engine, divide, requests, deliver)) as running:
        while True:
            if running.has_room and (number := running.take()) is not None:
                found = None
            elif running.jobs:
                number, found = await results.get()
            else:
                return
            answer = await asyncio.to_thread(running.go_on, number, found)  # it may encode a reference
            if answer is not None:
                yield number, answer


class _Running:
    """The requests of one iterator that are at the engine."""

    def __init__(
        self,
        engine: SpeechEngine,
        divide: Callable[[Any], Pieces],
        requests: Iterable[Any],
        deliver: Callable[[int, Speech | Exception], Any],
    ):
        self._engine, self._divide, self._deliver = engine, divide, deliver
        self._coming = enumerate(requests)
        self._pieces: dict[int, Pieces] = {}
        self.jobs: dict[int, int] = {}  # the engine's number of each request's

    @property
    def has_room(self) -> bool:
        return len(self.jobs) < AHEAD * self._engine.slots

    def take(self) -> int | None:
        """Takes the next request and returns its number; None: there is none."""
        following = next(self._coming, None)
        if following is None:
            return None
        number, request = following
        self._pieces[number] = self._divide(request)
        return number

    def go_on(self, number: int, found: Speech | Exception | None) -> Audio | SparkError | None:
        """Takes the speech of a piece, or begins; submits the next piece, or returns the whole or the request's error.

        Raises:
          Exception: an error of the device.
        """
        self.jobs.pop(number, None)
        try:
            if isinstance(found, Exception):
                raise found
            job = self._pieces[number].send(found)
        except StopIteration as end:
            answer = end.value
        except SparkError as error:
            answer = error
        else:
            self.jobs[number] = self._engine.submit(job, lambda result: self._deliver(number, result))
            return None
        del self._pieces[number]
        return answer

    def close(self) -> None:
        """Drops what is not finished."""
        for job in self.jobs.values():
            self._engine.cancel(job)
