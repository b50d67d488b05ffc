"""Many requests through one engine: iterators over their speech, in the order in which it is finished.

A request that cannot be spoken has its error in the place of its speech, and the others go on. An error of the device
is raised: it concerns all.
"""

import asyncio
import contextlib
import dataclasses
import queue
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from spark_jax.errors import SparkError
from spark_jax.inference.audio import Audio, Speech
from spark_jax.inference.speech_engine import SpeechEngine, SpeechJob

AHEAD = 2  # requests that are at the engine, in multiples of its slots

# Yields jobs of pieces of a request's text, which may be spoken together, takes their speech, and returns the whole.
Pieces = Generator[list[SpeechJob], list[Speech] | None, Audio]


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
    results: queue.SimpleQueue[_Result] = queue.SimpleQueue()
    running = _Running(engine, divide, requests, results.put)
    total = len(requests) if hasattr(requests, "__len__") else None
    with contextlib.closing(running), tqdm(total=total, disable=not progress, unit=" texts") as bar:
        seconds = 0.0
        while True:
            if running.has_room and (number := running.take()) is not None:
                answer = running.begin(number)
            elif running.jobs:
                number, answer = running.receive(results.get())
            else:
                return
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

    def deliver(result: _Result) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(results.put_nowait, result)

    with contextlib.closing(_Running(engine, divide, requests, deliver)) as running:
        while True:
            if running.has_room and (number := running.take()) is not None:
                answer = await asyncio.to_thread(running.begin, number)  # it may encode a reference
            elif running.jobs:
                number, answer = await asyncio.to_thread(running.receive, await results.get())
            else:
                return
            if answer is not None:
                yield number, answer


@dataclasses.dataclass(frozen=True)
class _Result:
    """What the engine delivers: of which request, of which of the jobs that it waits for, and what."""

    number: int
    place: int
    found: Speech | Exception


@dataclasses.dataclass
class _Request:
    """A request that is at the engine.

    Attributes:
      pieces: of its text.
      jobs: the engine's numbers of the jobs that it waits for, by their places.
      speech: what these have given so far.
    """

    pieces: Pieces
    jobs: dict[int, int] = dataclasses.field(default_factory=dict)
    speech: dict[int, Speech] = dataclasses.field(default_factory=dict)


class _Running:
    """The requests of one iterator that are at the engine."""

    def __init__(
        self,
        engine: SpeechEngine,
        divide: Callable[[Any], Pieces],
        requests: Iterable[Any],
        deliver: Callable[[_Result], Any],
    ):
        self._engine, self._divide, self._deliver = engine, divide, deliver
        self._coming = enumerate(requests)
        self._requests: dict[int, _Request] = {}
        self.jobs = 0  # at the engine

    @property
    def has_room(self) -> bool:
        return self.jobs < AHEAD * self._engine.slots

    def take(self) -> int | None:
        """Takes the next request and returns its number; None: there is none."""
        following = next(self._coming, None)
        if following is None:
            return None
        number, request = following
        self._requests[number] = _Request(self._divide(request))
        return number

    def begin(self, number: int) -> Audio | SparkError | None:
        """Submits the first pieces of a request; returns its error where there is nothing to submit."""
        return self._go_on(number, None)

    def receive(self, result: _Result) -> tuple[int, Audio | SparkError | None]:
        """Takes the speech of a piece, and returns the request's number with its whole speech or its error, if so far.

        Raises:
          Exception: an error of the device.
        """
        request = self._requests.get(result.number)
        if request is None:  # a piece of a request that has failed
            return result.number, None
        del request.jobs[result.place]
        self.jobs -= 1
        if isinstance(result.found, SparkError):
            return result.number, self._end(result.number, result.found)
        if isinstance(result.found, Exception):
            raise result.found
        request.speech[result.place] = result.found
        if request.jobs:
            return result.number, None
        speech = [request.speech.pop(place) for place in sorted(request.speech)]
        return result.number, self._go_on(result.number, speech)

    def close(self) -> None:
        """Drops what is not finished."""
        for number in [*self._requests]:
            self._end(number, None)

    def _go_on(self, number: int, speech: list[Speech] | None) -> Audio | SparkError | None:
        request = self._requests[number]
        try:
            jobs = request.pieces.send(speech)
        except StopIteration as end:
            return self._end(number, end.value)
        except SparkError as error:
            return self._end(number, error)
        self.jobs += len(jobs)
        for place, job in enumerate(jobs):
            deliver = lambda found, place=place: self._deliver(_Result(number, place, found))  # noqa: E731
            request.jobs[place] = self._engine.submit(job, deliver)
        return None

    def _end(self, number: int, answer: Audio | SparkError | None) -> Audio | SparkError | None:
        """Forgets a request, and what the engine still has of it."""
        request = self._requests.pop(number)
        for job in request.jobs.values():
            self._engine.cancel(job)
        self.jobs -= len(request.jobs)
        return answer
