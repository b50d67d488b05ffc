"""What a listener hears of streams that begin together: for tools/benchmark.py, `streams` and `inference`."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from spark_jax.inference.stream import SpeechStream

LATE = 0.05  # seconds by which a chunk comes too late for a player not to be heard waiting
HEADER = "| streams | first chunk, s | at most | longest gap, s | gaps over 50 ms | audio s a s |\n" + "|---" * 6 + "|"


class Heard(NamedTuple):
    """What a listener heard of one stream; seconds."""

    first_chunk: float  # until it could be heard
    longest_gap: float  # by which a chunk came too late to be played behind the one before
    audio: float
    last_chunk: float


def listen(stream: "SpeechStream") -> Heard:
    """Plays a stream: playback begins with the first chunk, and waits where the next one is late."""
    start = time.perf_counter()
    first = longest = audio = until = 0.0
    with stream:
        for chunk in stream:
            now = time.perf_counter() - start
            if not audio:
                first = until = now
            longest = max(longest, now - until)
            seconds = len(chunk.samples) / chunk.sample_rate
            audio, until = audio + seconds, max(until, now) + seconds
    return Heard(first, longest, audio, now)


def listen_together(begin: Sequence[Callable[[], "SpeechStream"]]) -> list[Heard]:
    """Plays streams that begin at once, each in a thread of its own."""
    with ThreadPoolExecutor(len(begin)) as pool:
        return list(pool.map(lambda start: listen(start()), begin))


def row(count: int, rounds: Sequence[Sequence[Heard]]) -> str:
    """Returns the line of a table for rounds of so many streams: medians over all streams, and over rounds."""
    first = [heard.first_chunk for one in rounds for heard in one]
    gaps = [heard.longest_gap for one in rounds for heard in one]
    late = f"{sum(gap > LATE for gap in gaps)} of {len(gaps)}"
    figures = f"{statistics.median(first):.3f} | {max(first):.3f} | {max(gaps):.3f} | {late} | {speed(rounds):.1f}"
    return f"| {count} | {figures} |"


def speed(rounds: Sequence[Sequence[Heard]]) -> float:
    """Returns the seconds of audio a second of all streams together, the median of rounds."""
    return statistics.median(
        sum(heard.audio for heard in one) / max(heard.last_chunk for heard in one) for one in rounds
    )
