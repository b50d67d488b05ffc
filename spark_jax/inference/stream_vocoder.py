"""One thread that makes the speech of many streams while their tokens come: part by part, several streams at once."""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from spark_jax.bicodec.receptive_field import Context
from spark_jax.inference import parts, placement
from spark_jax.inference.codec import Codec
from spark_jax.inference.parts import Part, StreamSettings, Utterance, cross_fade
from spark_jax.inference.speech_tokens import part_context
from spark_jax.shared import workers

ROWS = 8  # streams that are vocoded together, but on CPUs

# What the owner of a voiced utterance gets: samples, and whether they are the last; or why there are no more. The
# vocoder's thread calls it: it must neither wait nor raise.
Deliver = Callable[[Float[np.ndarray, "_"] | Exception, bool], Any]


@dataclasses.dataclass(eq=False)
class _Voiced:
    """An utterance on its way."""

    number: int
    utterance: Utterance
    deliver: Deliver
    delay: float
    global_ids: Int[np.ndarray, " global"] | None = None
    phase: np.uint32 = np.uint32(0)  # of a harmonic source, at the start of the next part
    tail: Float[np.ndarray, " fade"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    due: float | None = None  # when a listener has heard what is delivered
    working: bool = False  # a part is being made
    part: Part | None = None  # the next

    def window(self, context: Context) -> tuple[Int[np.ndarray, " window"], Bool[np.ndarray, " window"]]:
        return self.utterance.window(self.part, context.before, context.after)


class StreamVocoder:
    """Speaks utterances whose tokens come from any thread; its own thread lives while there are any."""

    def __init__(self, codec: Codec, settings: StreamSettings = StreamSettings()):  # noqa: B008 (frozen)
        """Args:
        codec: with the BiCodec.
        settings: sizes of the programs.
        """
        self.settings = settings
        self._codec, self._config = codec, codec.config
        self._context = part_context(codec.config)
        on_cpu = codec.mesh.devices.flat[0].platform == "cpu"
        shards = placement.row_shards(codec.mesh)
        self._rows = -(-(settings.rows or (1 if on_cpu else ROWS)) // shards) * shards
        self._changed = threading.Condition()
        self._open: dict[int, _Voiced] = {}
        self._thread: threading.Thread | None = None
        self._next_number = 0

    def open(self, deliver: Deliver, latency: str = "exact", delay: float = 0.0) -> int:
        """Begins an utterance; `deliver` gets its samples. Returns a number for the other methods.

        Args:
          deliver: see `Deliver`.
          latency: "exact": the parts joined are the speech of the whole; "low": they come earlier, and are nearly so.
          delay: seconds in which nobody waits for it yet.
        """
        low = latency == "low"
        look_ahead = min(self.settings.look_ahead, self._context.after) if low else self._context.after
        utterance = Utterance(self.settings.parts, look_ahead, parts.FADE if low else 0)
        with self._changed:
            number, self._next_number = self._next_number, self._next_number + 1
            self._open[number] = _Voiced(number, utterance, deliver, delay)
            if self._thread is None:
                self._thread = workers.start(self._work, "spark-jax vocoder", self._wake)
        return number

    def extend(self, number: int, global_ids: Int[np.ndarray, " global"], ids: Int[np.ndarray, " new"]) -> None:
        """Takes more semantic ids of an utterance, and all global ids of its voice; one that is closed has none."""
        with self._changed:
            if (voiced := self._open.get(number)) is not None:
                voiced.global_ids = global_ids
                voiced.utterance.extend(ids)
                self._changed.notify()

    def end(self, number: int) -> None:
        """Says that no more ids of an utterance come: its last samples are delivered, where it has any ids."""
        with self._changed:
            if (voiced := self._open.get(number)) is not None:
                voiced.utterance.end()
                if not voiced.utterance.over:
                    self._changed.notify()
                    return
                self.close(number)
        if voiced is not None:
            voiced.deliver(np.zeros(0, np.float32), True)

    def close(self, number: int) -> None:
        """Gives an utterance up: after it nothing is delivered but what is on its way."""
        with self._changed:
            self._open.pop(number, None)
            self._changed.notify()

    def warmup(self) -> None:
        """Compiles every program; after it no stream compiles anything."""
        for size in self.settings.parts:
            jax.block_until_ready(self._start(size, [], []))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        pending: collections.deque[tuple[list[_Voiced], tuple[jax.Array, jax.Array]]] = collections.deque()
        while True:
            with self._changed:
                while not (chosen := self._choose()) and not pending and self._open and not workers.ending():
                    self._changed.wait()
                if not (chosen or pending) or workers.ending():
                    self._thread = None
                    return
                windows = [voiced.window(self._context) for voiced in chosen]
            try:
                if chosen:
                    pending.append((chosen, self._start(chosen[0].part.size, chosen, windows)))
                if len(pending) > 1 or not chosen:
                    self._deliver(*pending[0])
                    pending.popleft()
            except Exception as error:
                self._fail([*chosen, *(voiced for batch, _ in pending for voiced in batch)], error)
                pending.clear()

    def _choose(self) -> list[_Voiced]:
        """Returns those whose parts are made next, of one size: first who would be the first to hear a gap."""
        ready = []
        for voiced in self._open.values():
            if not voiced.working and (part := voiced.utterance.next_part()) is not None:
                voiced.part = part
                voiced.due = time.monotonic() + voiced.delay if voiced.due is None else voiced.due
                ready.append(voiced)
        ready.sort(key=lambda voiced: voiced.due)
        chosen = [voiced for voiced in ready if voiced.part.size == ready[0].part.size][: self._rows]
        for voiced in chosen:
            voiced.working = True
        return chosen

    def _start(
        self, size: int, chosen: Sequence[_Voiced], windows: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[jax.Array, jax.Array]:
        window, rows = self._context.before + size + self._context.after, self._rows
        arrays = {
            "semantic_ids": np.zeros((rows, window), np.int32),
            "global_ids": np.zeros((rows, self._config.bicodec.speaker_encoder.token_num), np.int32),
            "mask": np.zeros((rows, window), bool),
            "phase": np.zeros(rows, np.uint32),
            "place": np.zeros(rows, np.int32),
            "advance": np.zeros(rows, np.int32),
        }
        for row, (voiced, (ids, known)) in enumerate(zip(chosen, windows, strict=True)):
            arrays["semantic_ids"][row], arrays["mask"][row] = ids, known
            arrays["global_ids"][row], arrays["phase"][row] = voiced.global_ids, voiced.phase
            arrays["place"][row], arrays["advance"][row] = voiced.part.first, voiced.part.advance
        results = self._codec.vocode_part(**arrays)
        for result in results:
            result.copy_to_host_async()
        return results

    def _deliver(self, chosen: Sequence[_Voiced], results: tuple[jax.Array, jax.Array]) -> None:
        waves, phases = map(np.asarray, results)
        hop, rate = self._config.latent_hop_length, self._config.sample_rate
        ready = []
        with self._changed:
            for voiced, wave, phase in zip(chosen, waves, phases, strict=False):
                part = voiced.part
                voiced.utterance.take(part)
                samples = cross_fade(voiced.tail, wave[: part.advance * hop])
                voiced.tail = np.array(wave[part.advance * hop : part.size * hop])
                voiced.phase, voiced.working = phase, False
                voiced.due = max(voiced.due, time.monotonic()) + len(samples) / rate
                if voiced.number in self._open:
                    ready.append((voiced.deliver, samples, part.last))
                if part.last:
                    self._open.pop(voiced.number, None)
        for deliver, samples, last in ready:
            deliver(samples, last)

    def _fail(self, chosen: Sequence[_Voiced], error: Exception) -> None:
        with self._changed:
            failed = [voiced for voiced in chosen if self._open.pop(voiced.number, None) is not None]
        for voiced in failed:
            voiced.deliver(error, True)
