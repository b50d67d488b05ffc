"""Speech that is given out while it is made: iterators over the chunks of one request, many of them on one engine.

    with tts.stream(request) as stream:
        for chunk in stream:
            play(chunk.samples)

A stream holds one slot of the engine at a time: the next piece of its text begins when the tokens of the one before are
there, and no more than `AHEAD` pieces wait for the listener, however long the text and however slow the listener is.

The first piece is given out while it is spoken, and so is a later one that is so long that a listener would have to
wait for its end. Any other is looked at first, and spoken again where something is wrong with it: what was heard cannot
be taken back. Which are which, and how the speech is cut into chunks, depends on text and tokens alone, so that the
same request gives the same chunks however busy the machine, and however slow the listener, is.
"""

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from spark_jax.inference.audio import Speech
from spark_jax.inference.checks import Finding
from spark_jax.inference.long_text import Plan, Span
from spark_jax.inference.speech_engine import SpeechEngine, SpeechJob
from spark_jax.inference.spoken_text import SpokenPiece, SpokenText
from spark_jax.inference.stream_vocoder import StreamVocoder
from spark_jax.model_directory.voice import Voice
from spark_jax.text.split import spoken_length

AHEAD = 2  # pieces that are spoken or being spoken beside the one that is given out
FASTER = 2.0  # how much longer than what is heard meanwhile a piece may be, to be spoken before it is heard


@dataclasses.dataclass(frozen=True, eq=False)
class AudioChunk:
    """A stretch of speech.

    Attributes:
      samples: float32.
      sample_rate: Hz.
      start: number of its first sample in the whole.
      piece: number of the piece of the text that it belongs to; the silence after a piece does, too.
      text: of the piece.
    """

    samples: Float[np.ndarray, " time"]
    sample_rate: int
    start: int
    piece: int
    text: str


@dataclasses.dataclass(eq=False)
class _Piece:
    """A piece of the text on its way."""

    number: int
    at_once: bool  # it is given out while it is spoken
    utterance: int | None = None  # at the vocoder
    job: int | None = None  # at the engine, until its tokens are there
    speech: Speech | None = None  # its tokens
    chunks: list[Float[np.ndarray, "_"]] = dataclasses.field(default_factory=list)
    given: int = 0  # chunks that are given out
    kept: SpokenPiece | None = None  # when all of it is there, and nothing is to be spoken again


def is_heard_at_once(plan: Plan, number: int) -> bool:
    """Returns whether a piece is given out while it is spoken, and not looked at first.

    It is the first one, or much longer than those that may be heard while it is spoken.
    """
    lengths = [spoken_length(piece.text) for piece in plan.pieces[max(0, number - AHEAD) : number + 1]]
    return lengths[-1] > FASTER * sum(lengths[:-1])


class Speaking:
    """One request that is spoken: what threads bring, and what is given out next."""

    def __init__(
        self,
        text: SpokenText,
        engine: SpeechEngine,
        vocoder: StreamVocoder,
        sample_rate: int,
        latency: str,
        wake: Callable[[], Any] | None = None,
    ):
        """Args:
        text: the request's.
        engine, vocoder: shared by all streams.
        sample_rate: Hz.
        latency: see `StreamVocoder.open`.
        wake: called from any thread when there may be something new; None: nobody waits but in `wait_for_chunk`.
        """
        self.text, self.sample_rate = text, sample_rate
        self.spans: list[Span] = []
        self.checks: list[Finding] = []
        self.reached_limit = False
        self._engine, self._vocoder, self._latency, self._wake = engine, vocoder, latency, wake
        self._changed = threading.Condition()
        self._pieces: dict[int, _Piece] = {}
        self._head = 0  # the piece that is given out
        self._retrying = False
        self._position = 0  # samples that are given out
        self._begun: float | None = None  # when the first of them were
        self._error: Exception | None = None
        self._closed = False

    def begin(self) -> None:
        """Sends the first piece to the engine; it may encode a reference first.

        Raises:
          SparkError: the request cannot be spoken.
        """
        with self._changed:
            self._refill()
        if self._error is not None:
            raise self._error

    @property
    def over(self) -> bool:
        """Returns whether there are no more chunks, and will not be."""
        with self._changed:
            return self._closed or (self.text.over and not self._pieces)

    def next_chunk(self) -> AudioChunk | None:
        """Returns the next chunk; None: it is not there yet, or the speech is over.

        Raises:
          Exception: no more could be spoken.
        """
        with self._changed:
            if self._position == 0 and self._begun is None and (lead := self._silence(self.text.plan.lead)) is not None:
                return self._chunk(lead, 0)
            while (piece := self._pieces.get(self._head)) is not None:
                if piece.given < len(piece.chunks) and (piece.at_once or piece.kept is not None):
                    piece.given += 1
                    return self._chunk(piece.chunks[piece.given - 1], piece.number)
                if piece.kept is None:
                    break
                self._end_head(piece)
                if (pause := self._silence(piece.kept.piece.pause)) is not None:
                    return self._chunk(pause, piece.number)
            if self._error is not None:
                raise self._error
            return None

    def wait_for_chunk(self) -> AudioChunk | None:
        """Returns the next chunk when it is there; None: the speech has ended.

        Raises:
          Exception: no more could be spoken.
        """
        with self._changed:
            while (chunk := self.next_chunk()) is None and not self.over:
                self._changed.wait()
            return chunk

    def close(self) -> None:
        """Lets everything go; the slot is free for the next block."""
        with self._changed:
            self._closed = True
            for piece in self._pieces.values():
                self._let_go(piece)
            self._pieces.clear()
            self._notify()

    def _chunk(self, samples: Float[np.ndarray, " time"], number: int) -> AudioChunk:
        if self._begun is None:
            self._begun = time.monotonic()
        start, self._position = self._position, self._position + len(samples)
        return AudioChunk(samples, self.sample_rate, start, number, self.text.plan.pieces[number].text)

    def _silence(self, seconds: float) -> Float[np.ndarray, " time"] | None:
        count = round(seconds * self.sample_rate)
        return np.zeros(count, np.float32) if count else None

    def _end_head(self, piece: _Piece) -> None:
        own = piece.kept
        start = self._position - len(own.speech.samples)
        self.spans.append(Span(own.piece.text, start, self._position, own.tries))
        self.checks += own.checks
        self.reached_limit |= own.speech.reached_limit
        del self._pieces[piece.number]
        self._head += 1
        self._refill()

    def _refill(self) -> None:
        """Sends pieces to the engine that may be spoken now: one at a time, and few before they are heard."""
        try:
            while not (self._closed or self._error):
                busy = any(piece.job is not None for piece in self._pieces.values())
                if (busy or len(self._pieces) > AHEAD) and not self._retrying:
                    break
                self._retrying = False
                if (found := self.text.next_job()) is None:
                    break
                self._send(*found)
            self.reached_limit |= self.text.cut_off
        except Exception as error:
            self._fail(error)

    def _send(self, number: int, job: SpeechJob) -> None:
        again = number in self._pieces
        once = not self.text.request.retries or self.text.request.greedy
        piece = _Piece(number, not again and (once or is_heard_at_once(self.text.plan, number)))
        self._pieces[number] = piece
        ahead = 0.0 if self._begun is None else self._begun + self._position / self.sample_rate - time.monotonic()
        piece.utterance = utterance = self._vocoder.open(
            lambda samples, last: self._take_samples(piece, samples, last),
            self._latency,
            delay=max(0.0, ahead) if number > self._head else 0.0,
        )
        heard = lambda voice, new: self._vocoder.extend(utterance, voice, new)  # noqa: E731
        listening = dataclasses.replace(job, on_tokens=heard, vocode=False)
        piece.job = self._engine.submit(listening, lambda result: self._take_tokens(piece, result))

    def _take_tokens(self, piece: _Piece, result: Speech | Exception) -> None:
        with self._changed:
            piece.job = None
            if self._closed:
                return
            if isinstance(result, Exception):
                self._fail(result)
                return
            piece.speech = result
            self._refill()
        self._vocoder.end(piece.utterance)

    def _take_samples(self, piece: _Piece, samples: Float[np.ndarray, "_"] | Exception, last: bool) -> None:
        with self._changed:
            if self._closed:
                return
            if isinstance(samples, Exception):
                self._fail(samples)
                return
            piece.chunks.append(samples)
            if last:
                whole = dataclasses.replace(piece.speech, samples=np.concatenate(piece.chunks))
                heard = piece.at_once and len(piece.chunks) > 1  # or may be, at any time
                piece.kept = self.text.take(piece.number, whole, heard=heard)
                if not heard:
                    piece.chunks = [] if piece.kept is None else [piece.kept.speech.samples]
                self._retrying |= piece.kept is None
                self._refill()
            self._notify()

    def _fail(self, error: Exception) -> None:
        self._error = error
        for piece in self._pieces.values():
            if piece.utterance is not None:
                self._vocoder.close(piece.utterance)  # nothing more of it is given out
        self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            self._wake()

    def _let_go(self, piece: _Piece) -> None:
        if piece.job is not None:
            self._engine.cancel(piece.job)
        if piece.utterance is not None:
            self._vocoder.close(piece.utterance)


class _Results:
    """What is known of a stream's speech so far."""

    _speaking: Speaking

    @property
    def sample_rate(self) -> int:
        """Returns the sample rate, in Hz."""
        return self._speaking.sample_rate

    @property
    def voice(self) -> Voice | None:
        """Returns whose voice speaks; None: it is made up for the first piece, which has not ended."""
        return self._speaking.text.voice

    @property
    def spans(self) -> tuple[Span, ...]:
        """Returns where each piece of the text is heard that is given out."""
        return tuple(self._speaking.spans)

    @property
    def checks(self) -> tuple[Finding, ...]:
        """Returns what is wrong with these pieces."""
        return tuple(self._speaking.checks)

    @property
    def reached_limit(self) -> bool:
        """Returns whether one of them, or the text, was cut off."""
        return self._speaking.reached_limit


class SpeechStream(_Results):
    """An iterator over the chunks of one request; leaving it, or `close`, frees its slot."""

    def __init__(self, speaking: Speaking):
        """Args:
        speaking: of which nothing has begun.
        """
        self._speaking, self._begun = speaking, False

    def __iter__(self) -> "SpeechStream":
        return self

    def __next__(self) -> AudioChunk:
        if not self._begun:
            self._begun = True
            self._speaking.begin()
        chunk = self._speaking.wait_for_chunk()
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Gives the rest up."""
        self._speaking.close()

    def __enter__(self) -> "SpeechStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncSpeechStream(_Results):
    """As `SpeechStream`, for `async for`; the event loop goes on meanwhile."""

    def __init__(self, start: Callable[[Callable[[], Any]], Speaking]):
        """Args:
        start: makes what is spoken, of which nothing has begun, of what wakes it.
        """
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._speaking = start(self._wake)

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                self._loop.call_soon_threadsafe(self._news.set)

    def __aiter__(self) -> "AsyncSpeechStream":
        return self

    async def __anext__(self) -> AudioChunk:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            await asyncio.to_thread(self._speaking.begin)
        while True:
            self._news.clear()
            if (chunk := self._speaking.next_chunk()) is not None:
                return chunk
            if self._speaking.over:
                raise StopAsyncIteration
            await self._news.wait()

    async def aclose(self) -> None:
        """Gives the rest up."""
        self._speaking.close()

    async def __aenter__(self) -> "AsyncSpeechStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._speaking.close()
