"""Many requests through one engine: iterators over their speech, in the order in which it is finished.

The pieces of all texts share the engine's slots; those of a long text are spoken beside each other. A request that
cannot be spoken has its error in the place of its speech, and the others go on. An error of the device is raised: it
concerns all.
"""

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from spark_jax.errors import SparkError
from spark_jax.inference.audio import Audio, Speech
from spark_jax.inference.speech_engine import SpeechEngine
from spark_jax.inference.spoken_text import SpokenPiece, SpokenText

AHEAD = 2  # pieces of texts that are at the engine, in multiples of its slots

Divide = Callable[[Any], SpokenText]
Deliver = Callable[[int, int, Speech | Exception], Any]  # of which request and piece


def speak_all(
    engine: SpeechEngine, divide: Divide, requests: Iterable[Any], progress: bool = False
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
    results: queue.SimpleQueue[tuple[int, int, Speech | Exception]] = queue.SimpleQueue()
    running = _Running(engine, divide, requests, lambda *result: results.put(result))
    total = len(requests) if hasattr(requests, "__len__") else None
    with contextlib.closing(running), tqdm(total=total, disable=not progress, unit=" texts") as bar:
        seconds = 0.0
        while True:
            if running.has_room and (number := running.next_number()) is not None:
                answer = running.start(number)
            elif running.jobs:
                answer = running.take(*results.get())
            else:
                return
            if answer is None:
                continue
            number, answer = answer
            if isinstance(answer, Audio):
                seconds += len(answer.samples) / answer.sample_rate
            bar.update()
            bar.set_postfix_str(f"{seconds / max(bar.format_dict['elapsed'], 1e-9):.1f} s of audio a second")
            yield number, answer


async def speak_all_async(
    engine: SpeechEngine, divide: Divide, requests: Iterable[Any]
) -> AsyncIterator[tuple[int, Audio | SparkError]]:
    """Yields what `speak_all` does while the event loop goes on; many of them share the engine."""
    loop, results = asyncio.get_running_loop(), asyncio.Queue()

    def deliver(*result: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(results.put_nowait, result)

    with contextlib.closing(_Running(engine, divide, requests, deliver)) as running:
        while True:
            if running.has_room and (number := running.next_number()) is not None:
                answer = await asyncio.to_thread(running.start, number)  # it may encode a reference
            elif running.jobs:
                answer = await asyncio.to_thread(running.take, *await results.get())
            else:
                return
            if answer is not None:
                yield answer


class _Running:
    """The requests of one iterator that are at the engine."""

    def __init__(self, engine: SpeechEngine, divide: Divide, requests: Iterable[Any], deliver: Deliver):
        self._engine, self._divide, self._deliver = engine, divide, deliver
        self._coming = enumerate(requests)
        self._texts: dict[int, SpokenText] = {}
        self._spoken: dict[int, list[SpokenPiece]] = {}
        self._willing: set[int] = set()  # requests that may have another piece to speak
        self.jobs: dict[tuple[int, int], int] = {}  # the engine's number of each request's piece

    @property
    def has_room(self) -> bool:
        return len(self.jobs) < AHEAD * self._engine.slots

    def next_number(self) -> int | None:
        """Returns the number of the request that is to go on, or begins another; None: there is none."""
        if self._willing:
            return min(self._willing)
        following = next(self._coming, None)
        if following is None:
            return None
        number, request = following
        self._texts[number], self._spoken[number] = self._divide(request), []
        self._willing.add(number)
        return number

    def start(self, number: int) -> tuple[int, Audio | SparkError] | None:
        """Submits a piece of a request, if there is one now; returns its error or its whole where it ends with that."""
        try:
            found = self._texts[number].next_job()
        except SparkError as error:
            return self._end(number, error)
        if found is None:
            self._willing.discard(number)
            return self._end_of(number)
        piece, job = found
        self.jobs[number, piece] = self._engine.submit(job, lambda result: self._deliver(number, piece, result))
        return None

    def take(self, number: int, piece: int, found: Speech | Exception) -> tuple[int, Audio | SparkError] | None:
        """Takes the speech of a piece; returns the whole of its request, or its error, where it ends with that.

        Raises:
          Exception: an error of the device.
        """
        if self.jobs.pop((number, piece), None) is None:
            return None  # another piece has failed
        if isinstance(found, SparkError):
            return self._end(number, found)
        if isinstance(found, Exception):
            raise found
        spoken = self._texts[number].take(piece, found)
        if spoken is not None:
            self._spoken[number].append(spoken)
        self._willing.add(number)
        return self._end_of(number)

    def close(self) -> None:
        """Drops what is not finished."""
        for job in self.jobs.values():
            self._engine.cancel(job)

    def _end_of(self, number: int) -> tuple[int, Audio | SparkError] | None:
        text = self._texts[number]
        return self._end(number, text.audio(self._spoken[number])) if text.over else None

    def _end(self, number: int, answer: Audio | SparkError) -> tuple[int, Audio | SparkError]:
        for place in [place for place in self.jobs if place[0] == number]:
            self._engine.cancel(self.jobs.pop(place))
        del self._texts[number], self._spoken[number]
        self._willing.discard(number)
        return number, answer
