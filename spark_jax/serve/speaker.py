"""The one who speaks for all clients: how many at once, how long at most, and what is measured of it.

Requests of all clients share the slots of one engine, which one thread owns. A client that leaves gives its slot back.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from spark_jax.errors import SparkError
from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.model_directory.voice import Voice
from spark_jax.serve.errors import ApiError, from_spark_error
from spark_jax.serve.metrics import Metrics
from spark_jax.serve.parts import Part, stream_parts
from spark_jax.serve.schema import PARAMS
from spark_jax.serve.settings import ServerSettings
from spark_jax.serve.uploads import voice_of_upload

_SOON = {"Retry-After": "5"}
_WARM_TEXT = "The children played in the water all day."


class Speaker:
    """Speaks requests with one model.

    Attributes:
      tts: the model.
      slots: how many requests decode together.
      metrics: of what was spoken.
      ready: requests are taken.
    """

    def __init__(self, tts: SparkTTS, settings: ServerSettings):
        """Args:
        tts: used by nobody else from now on.
        settings: the limits.
        """
        self.tts, self._settings = tts, settings
        self.slots = tts.engine.slots
        self.metrics = Metrics(self.slots, lambda: tts.engine.load)
        self.ready = False
        self._active, self._cloning = 0, asyncio.Lock()
        self._seconds = 1.0  # that a request took of late
        self._failure: Exception | None = None
        self._ending = False

    @property
    def state(self) -> str:
        """Returns "starting", "ready", "ending" or "failed"."""
        if self._failure:
            return "failed"
        return "ending" if self._ending else "ready" if self.ready else "starting"

    def close(self) -> None:
        """Takes no more requests; those at work go on."""
        self.ready, self._ending = False, True

    async def warm_up(self) -> None:
        """Compiles what requests run, and then takes them."""
        try:
            await asyncio.to_thread(self.tts.warmup)
            async for _ in stream_parts(self.tts, self._warm_request(), "exact"):
                pass
            self.ready = not self._ending
        except Exception as error:
            self._failure = error
            raise

    def check_ready(self) -> None:
        """Checks that requests are taken.

        Raises:
          ApiError: the model is not warm yet, or the server is to end.
        """
        if not self.ready:
            raise ApiError(503, f"the server is {self.state}: come again", code=f"server_{self.state}", headers=_SOON)

    @contextlib.contextmanager
    def place(self, count: int = 1) -> Iterator[None]:
        """Holds places for requests, in a slot or in the queue.

        Raises:
          ApiError: 503, it is not ready; 429, there are too many.
        """
        self.check_ready()
        most = self.slots + self._settings.queue
        if self._active + count > most:
            wait = max(1, round(self._seconds * (self._active - self.slots + count) / self.slots))
            message = f"{self._active} requests are at work or wait, {most} at most: come again in {wait} s"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": str(wait)})
        self._active += count
        try:
            yield
        finally:
            self._active -= count

    async def speak(self, request: Request, latency: str = "exact") -> AsyncIterator[Part]:
        """Yields the speech of a request in the order in which it is heard, while it is made.

        Args:
          request: what is said.
          latency: see `SparkTTS.stream`.

        Raises:
          ApiError: the request cannot be spoken, or not in time.
        """
        begin, seconds = time.perf_counter(), 0.0
        end = asyncio.get_running_loop().time() + self._settings.timeout
        async with contextlib.aclosing(stream_parts(self.tts, request, latency)) as parts:
            while True:
                try:
                    async with asyncio.timeout_at(end):
                        part = await anext(parts)
                except StopAsyncIteration:
                    break
                except TimeoutError as error:
                    message = f"the speech was not made in {self._settings.timeout:g} s"
                    raise ApiError(504, message, code="timeout") from error
                except SparkError as error:
                    raise from_spark_error(error, PARAMS, "input") from error
                now = time.perf_counter()
                if not seconds and len(part.samples):
                    self.metrics.first_audio.observe(now - begin)
                seconds += len(part.samples) / self.tts.config.sample_rate
                yield part
        self._finish(now - begin, seconds)

    async def clone(self, content: bytes, transcript: str | None, param: str) -> tuple[Voice, list[str]]:
        """Returns the voice of a recording, and what may be wrong with it; one recording at a time.

        Args:
          content, transcript, param: see `voice_of_upload`.

        Raises:
          ApiError: it cannot be used.
        """
        async with self._cloning:  # those who wait hold no thread
            codec, longest = self.tts.codec, self._settings.max_upload_seconds
            return await asyncio.to_thread(voice_of_upload, content, transcript, codec, longest, param)

    def _finish(self, took: float, seconds: float) -> None:
        self._seconds += 0.1 * (took - self._seconds)
        self.metrics.audio_seconds.inc(seconds)
        if seconds:
            self.metrics.real_time_factor.observe(took / seconds)

    def _warm_request(self) -> Request:
        options: dict[str, Any] = {} if self.tts.default_voice is not None else {"gender": "female"}
        return Request(text=_WARM_TEXT, max_seconds=2.0, **options)
