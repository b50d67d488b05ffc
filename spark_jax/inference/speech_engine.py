"""One thread that owns an engine: it decodes what any thread submits, and vocodes what is finished meanwhile."""

import collections
import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from spark_jax.inference import buckets, placement
from spark_jax.inference.answers import Generation
from spark_jax.inference.audio import Speech
from spark_jax.inference.buckets import Batch
from spark_jax.inference.codec import Codec
from spark_jax.inference.engine import Engine, Job, Update
from spark_jax.shared import workers
from spark_jax.text.prompt import Prompt

VOCODED_TOGETHER = 512  # padded tokens of a batch of the vocoder on one device: 10 s at the release's rate
PATIENCE = 32  # turns that a batch of the vocoder waits for more of its length


# What a listener gets of each block that goes on with its speech: all global ids of the voice, and new semantic ids.
OnTokens = Callable[[Int[np.ndarray, " global"], Int[np.ndarray, " new"]], Any]


@dataclasses.dataclass(frozen=True)
class SpeechJob:
    """A job of the engine, and what becomes of its answer.

    Attributes:
      job: the job.
      most: the most semantic tokens of its speech.
      on_tokens: listens while it is spoken, until it is delivered. The thread that owns the engine calls it: it must
        neither wait nor raise.
      vocode: makes samples in the end; False: there are none, as where a listener has made them.
    """

    job: Job
    most: int
    on_tokens: OnTokens | None = None
    vocode: bool = True


# What a submitter gets: the speech, or why there is none. It is called by the thread that owns the engine.
Deliver = Callable[[Speech | Exception], Any]


@dataclasses.dataclass(eq=False)
class _Client:
    number: int
    job: SpeechJob
    deliver: Deliver
    voice: Int[np.ndarray, " global"]  # as far as it is known
    heard: int = 0  # semantic ids that the listener has


@dataclasses.dataclass(frozen=True, eq=False)
class _Finished:
    client: _Client
    generation: Generation
    turn: int  # when it was finished

    @property
    def semantic_ids(self) -> Int[np.ndarray, " tokens"]:
        # Where no <|im_end|> came, its place holds one token more than the limit.
        return self.generation.semantic_ids[: self.client.job.most]

    def deliver(self, samples: Float[np.ndarray, " time"]) -> None:
        own = self.generation
        self.client.deliver(Speech(samples, self.semantic_ids, own.global_ids, own.reached_limit))


class SpeechEngine:
    """Speaks jobs of any thread; its own thread lives while there is work."""

    def __init__(self, engine: Engine, codec: Codec, vocoded_together: int = VOCODED_TOGETHER):
        """Args:
        engine: used by nobody else from now on.
        codec: with the BiCodec.
        vocoded_together: padded tokens of a batch of the vocoder on one device; 1: each speech on its own, at once.
        """
        self._engine, self._codec = engine, codec
        # CPUs gain nothing from batches of the vocoder, but from less padding; they compile in seconds.
        on_cpu = placement.on_cpu(codec.mesh)
        self._vocoded_together = 1 if on_cpu else vocoded_together
        self._lengths_an_octave = buckets.FINE if on_cpu else buckets.COARSE
        self._lock = threading.Lock()
        self._inbox: collections.deque[tuple[str, Any]] = collections.deque()
        self._thread: threading.Thread | None = None
        self._numbers = itertools.count()
        # Of the owning thread alone:
        self._clients: dict[int, _Client] = {}  # by ticket
        self._waiting: dict[int, list[_Finished]] = {}  # for the vocoder, by padded length
        self._vocoding: collections.deque[tuple[list[_Finished], jax.Array]] = collections.deque()
        self._turn = 0

    @property
    def slots(self) -> int:
        """Returns how many jobs decode together."""
        return self._engine.settings.slots

    @property
    def load(self) -> tuple[int, int]:
        """Returns how many jobs wait for a slot and how many are in slots."""
        return self._engine.load

    def new_tokens(self, prompt: Prompt, semantic_tokens: int) -> int:
        """Returns the limit on new tokens with which an answer holds at most this many semantic tokens."""
        return self._engine.new_tokens(prompt, semantic_tokens)

    def room(self, prompt: Prompt) -> int:
        """Returns the most semantic tokens that an answer can hold; below 1: the prompt is too long."""
        return self._engine.room(prompt)

    def warmup(self) -> None:
        """Compiles every program of the engine; before the first job.

        Raises:
          SparkError: jobs are at work.
        """
        self._engine.warmup()

    def speak(self, jobs: Sequence[SpeechJob]) -> list[Speech]:
        """Returns the speech of jobs, in their order; one that is interrupted drops them.

        Raises:
          SparkError: a job is refused; see `Engine.submit`.
        """
        results: queue.SimpleQueue[tuple[int, Speech | Exception]] = queue.SimpleQueue()
        found: dict[int, Speech] = {}
        numbers = [
            self.submit(job, lambda speech, place=place: results.put((place, speech))) for place, job in enumerate(jobs)
        ]
        try:
            while len(found) < len(jobs):
                place, speech = results.get()
                if isinstance(speech, Exception):
                    raise speech
                found[place] = speech
        except BaseException:
            for number in numbers:
                self.cancel(number)
            raise
        return [found[place] for place in range(len(jobs))]

    def submit(self, job: SpeechJob, deliver: Deliver) -> int:
        """Takes a job from any thread; `deliver` gets its speech. Returns a number for `cancel`."""
        known = job.job.prompt.global_ids
        client = _Client(next(self._numbers), job, deliver, np.asarray([] if known is None else known, np.int32))
        self._send("submit", client)
        return client.number

    def cancel(self, number: int) -> None:
        """Lets a job go, at the next block; nothing is delivered then. One that is finished already is left alone."""
        self._send("cancel", number)

    def _send(self, what: str, content: Any) -> None:
        with self._lock:
            self._inbox.append((what, content))
            if self._thread is None:
                self._thread = workers.start(self._work, "spark-jax engine")

    def _work(self) -> None:
        while not workers.ending():
            with self._lock:
                if not (self._inbox or self._clients or self._waiting or self._vocoding):
                    self._thread = None
                    return
            try:
                self._take_turn()
            except Exception as error:
                self._fail(error)

    def _take_turn(self) -> None:
        self._turn += 1
        self._read_inbox()
        for update in self._engine.turn():
            self._tell(self._clients[update.ticket], update)
            if update.generation is None:
                continue
            finished = _Finished(self._clients.pop(update.ticket), update.generation, self._turn)
            if finished.client.job.vocode:
                length = buckets.bucket(len(finished.semantic_ids), self._lengths_an_octave)
                self._waiting.setdefault(length, []).append(finished)
            else:
                finished.deliver(np.zeros(0, np.float32))
        self._vocode(everything=not self._clients)
        self._deliver(everything=not self._clients)

    def _read_inbox(self) -> None:
        while self._inbox:
            what, content = self._inbox.popleft()
            if what == "submit":
                try:
                    self._clients[self._engine.submit(content.job.job)] = content
                except Exception as error:  # of this job alone
                    content.deliver(error)
                continue
            for ticket, client in list(self._clients.items()):
                if client.number == content:
                    self._engine.cancel(ticket)
                    del self._clients[ticket]
            for items in self._waiting.values():
                items[:] = [item for item in items if item.client.number != content]

    def _tell(self, client: _Client, update: Update) -> None:
        """Lets the listener hear what is new, if there is one; the voice is known before the first semantic id."""
        if client.job.on_tokens is None:
            return
        semantic_ids, made = self._engine.speech_codes(update.tokens)
        if client.job.job.prompt.global_ids is None:
            client.voice = np.concatenate([client.voice, made])
        semantic_ids = semantic_ids[: client.job.most - client.heard]
        if len(semantic_ids):
            client.heard += len(semantic_ids)
            client.job.on_tokens(client.voice, semantic_ids)

    def _vocode(self, everything: bool) -> None:
        """Starts the vocoder on batches that are full, on those that have waited long, or on all.

        All batches of a length have the same rows, so that a waveform depends on its own tokens alone.
        """
        for length, items in list(self._waiting.items()):
            rows = self._rows(length)
            while len(items) >= rows or (items and (everything or self._turn - items[0].turn >= PATIENCE)):
                chosen, items[:rows] = items[:rows], []
                batch = Batch(length, rows, tuple(range(len(chosen))))
                wave = self._codec.vocode([(item.generation.global_ids, item.semantic_ids) for item in chosen], batch)
                wave.copy_to_host_async()
                self._vocoding.append((chosen, wave))
            if not items:
                del self._waiting[length]

    def _rows(self, length: int) -> int:
        [batch] = buckets.batches([length], self._vocoded_together, placement.row_shards(self._codec.mesh), full=True)
        return batch.rows

    def _deliver(self, everything: bool) -> None:
        while self._vocoding and (everything or self._vocoding[0][1].is_ready()):
            items, wave = self._vocoding.popleft()
            samples = np.asarray(wave)
            for item, row in zip(items, samples, strict=False):
                item.deliver(np.array(row[: len(item.semantic_ids) * self._codec.config.latent_hop_length]))

    def _fail(self, error: Exception) -> None:
        """Tells everyone that the thread could not go on; what comes later starts anew."""
        self._engine.reset()
        finished = [*itertools.chain(*self._waiting.values(), *(items for items, _ in self._vocoding))]
        clients = [*self._clients.values(), *(item.client for item in finished)]
        self._clients, self._waiting = {}, {}
        self._vocoding.clear()
        for client in clients:
            client.deliver(error)
