"""What speaks shards: a model that is loaded once, and the way of a shard through it."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spark_jax.errors import SparkError, one_line
from spark_jax.inference.request import Request
from spark_jax.jobs.attempt import Attempt, Tally
from spark_jax.jobs.folder import JobFolder
from spark_jax.jobs.lines import BadJobError, Job, read_job
from spark_jax.jobs.shards import Shard
from spark_jax.jobs.thread_warnings import collect_into
from spark_jax.model_directory.voice import Voice

WRITERS = 2  # threads; encoding leaves the interpreter free
UNWRITTEN = 64  # finished jobs that may wait for them
MAX_TOGETHER = 8  # shards that a worker has at a time
VOICES = 256  # that are kept


@dataclasses.dataclass(frozen=True)
class WorkerSettings:
    """All that the speech of a job depends on beside its line, and where it goes.

    Attributes:
      source: the input.
      output: the folder of the batch.
      model: a model directory; None: the embedded voice.
      slots: requests that decode together.
      dtype: "float32" or "bfloat16".
      format: of the audio files.
      transcripts: writes what was spoken beside each of them.
      shard_size: lines of a shard.
    """

    source: str
    output: str
    model: str | None
    slots: int
    dtype: str
    format: str
    transcripts: bool
    shard_size: int

    @property
    def together(self) -> int:
        """Returns how many shards keep the slots full from one to the next."""
        return min(MAX_TOGETHER, 1 + math.ceil(self.slots / self.shard_size))


class Worker:
    """Speaks shards, in any number of threads: they share the slots."""

    def __init__(self, settings: WorkerSettings):
        """Loads the model onto all devices of this process.

        Raises:
          SparkError: something is wrong with the model, or the devices do not divide the slots.
        """
        import jax
        import jax.numpy as jnp

        from spark_jax import sharding
        from spark_jax.inference.engine import EngineSettings
        from spark_jax.inference.synthesize import SparkTTS

        devices = jax.local_devices()
        self._settings = settings
        self._folder = JobFolder(settings.output)
        self._tts = SparkTTS.load(
            settings.model,
            dtype=jnp.dtype(settings.dtype),
            mesh=sharding.make_mesh(devices=devices) if len(devices) > 1 else None,
            engine=EngineSettings(slots=settings.slots),
        )
        self._tts.synthesize_batch(())  # makes the engine, before there are threads
        # One shard at a time hands over its jobs: the next begins when the one before has no more.
        self._reading = threading.Lock()
        self._voice = functools.lru_cache(VOICES)(self._load_voice)

    def speak(self, shard: Shard, told: Callable[[Tally], Any] = lambda tally: None) -> Tally:
        """Speaks the jobs of a shard that no earlier attempt has spoken, and finishes it.

        Args:
          shard: the shard.
          told: is called with what became of each job.

        Raises:
          SparkError: the input cannot be read or the output not be written.
        """
        running: dict[int, _Running] = {}
        written: collections.deque[Future] = collections.deque()
        with (
            Attempt(self._folder, shard, self._settings.format, self._settings.transcripts) as attempt,
            ThreadPoolExecutor(WRITERS, "spark-jax writer") as writers,
            contextlib.closing(self._requests(shard, attempt, running, told)) as requests,
            contextlib.closing(self._tts.synthesize_batch(requests)) as results,
        ):
            for number, result in results:
                job = running.pop(number)
                if isinstance(result, SparkError):
                    attempt.fault(job.job.line, job.job.id, one_line(result))
                    told(Tally(failed=1))
                    continue
                seconds = time.perf_counter() - job.since
                written.append(writers.submit(attempt.keep, job.job, job.stem, result, seconds, job.warnings))
                told(Tally(1, 0, len(result.samples) / result.sample_rate))
                while len(written) > UNWRITTEN or (written and written[0].done()):
                    written.popleft().result()
            for future in written:
                future.result()
            return attempt.finish()

    def _requests(
        self, shard: Shard, attempt: Attempt, running: "dict[int, _Running]", told: Callable[[Tally], Any]
    ) -> Generator[Request, None, None]:
        """Yields the requests that are left, and notes who they are of and which lines are none."""
        source, first, number = Path(self._settings.source), dict(shard.repeated), itertools.count()
        with self._reading:
            try:
                for line, content in shard.read(source):
                    # What this thread warns of from here on is of this job: its voice is read, then its text.
                    messages: list[str] = []
                    collect_into(messages)
                    try:
                        job = read_job(content, line, source.parent)
                        if job is None:
                            continue
                        if line in first:
                            raise BadJobError(f"id {job.id!r} is given twice, first in line {first[line]}", job.id)
                        stem = attempt.stem(job)
                        if attempt.has(line):
                            told(Tally(spoken=1))
                            continue
                        request = self._with_voice(job)
                    except BadJobError as error:
                        attempt.fault(line, error.id, one_line(error))
                        told(Tally(failed=1))
                        continue
                    running[next(number)] = _Running(job, stem, time.perf_counter(), messages)
                    yield request
            finally:
                collect_into(None)

    def _with_voice(self, job: Job) -> Request:
        """Returns a request whose voice is read already: jobs of one speaker share it.

        Raises:
          BadJobError: the voice or the reference cannot be used.
        """
        request = job.request
        try:
            if request.reference is not None:
                voice = self._voice(request.reference, request.transcript, True)
            elif request.voice is not None:
                voice = self._voice(request.voice, None, False)
            else:
                return request
        except SparkError as error:
            raise BadJobError(str(error), job.id) from error
        return dataclasses.replace(request, voice=voice, reference=None, transcript=None)

    def _load_voice(self, path: str, transcript: str | None, spoken: bool) -> Voice:
        return self._tts.voice(path, transcript) if spoken else Voice.load(path, self._tts.config)


@dataclasses.dataclass(frozen=True)
class _Running:
    """A job that is at the engine since a moment, the name of its files, and what was warned of."""

    job: Job
    stem: str
    since: float
    warnings: list[str]
