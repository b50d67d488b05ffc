"""Open-loop load on a server of speech: requests come as in life, at random and whether or not others are answered.

What a listener would hear is reckoned from when the bytes came: playing begins a buffer after the first byte, and where
it has nothing left it waits, which is an underrun.
"""

import asyncio
import dataclasses
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import numpy as np

RATE = 16_000  # Hz that are asked for; PCM of 16 bits
BUFFERS = (0.05, 0.1)  # s
AUDIBLE = 10 ** (-45 / 20)  # of full scale
SENTENCES = Path(__file__).parents[1] / "spark_jax" / "evaluation" / "held_out_sentences.txt"


@dataclasses.dataclass
class Answer:
    """What came of one request; times are seconds after it was due.

    Attributes:
      status: of HTTP; 0: the connection failed.
      chunks: when each chunk came, and how many samples it had.
      first_sound: number of the first audible sample; None: there is none.
      ended: when the last byte came.
    """

    status: int = 0
    chunks: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    first_sound: int | None = None
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """Returns the length of its speech."""
        return sum(count for _, count in self.chunks) / RATE

    def underruns(self, buffer: float) -> int:
        """Returns how often a player with a buffer of so many seconds waits."""
        if not self.chunks:
            return 0
        end, count = self.chunks[0][0] + buffer, 0  # when what has come is played
        for place, (when, samples) in enumerate(self.chunks):
            if place and when > end:
                count, end = count + 1, when
            end += samples / RATE
        return count

    @property
    def audible(self) -> float | None:
        """Returns when a player without a buffer is first heard."""
        if self.first_sound is None:
            return None
        start, received = self.chunks[0][0], 0
        for when, samples in self.chunks:
            received += samples
            if received > self.first_sound:
                return max(start + self.first_sound / RATE, when)
        return None


async def one(client: httpx2.AsyncClient, fields: dict, due: float) -> Answer:
    """Sends a request and reads its answer."""
    answer, position, rest = Answer(), 0, b""
    try:
        async with client.stream("POST", "/v1/audio/speech", json=fields) as response:
            answer.status = response.status_code
            async for chunk in response.aiter_raw():
                content = rest + chunk
                rest = content[len(content) // 2 * 2 :]
                values = np.frombuffer(content[: len(content) // 2 * 2], "<i2")
                if answer.status != 200 or not len(values):
                    continue
                answer.chunks.append((time.perf_counter() - due, len(values)))
                loud = np.flatnonzero(np.abs(values.astype(np.float32)) > AUDIBLE * 32768)
                if answer.first_sound is None and len(loud):
                    answer.first_sound = position + int(loud[0])
                position += len(values)
    except httpx2.HTTPError:
        answer.status = 0
    answer.ended = time.perf_counter() - due
    return answer


async def at_rate(url: str, rate: float, seconds: float, seed: int = 0, **fields: object) -> list[Answer]:
    """Returns the answers to requests that come at random, so many a second on average.

    Args:
      url: of the server.
      rate: requests a second.
      seconds: for which they come.
      seed: of the times and texts.
      **fields: of the requests.
    """
    draw = random.Random(seed)
    texts = [line for line in SENTENCES.read_text().splitlines() if line.strip()]
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=url, timeout=300.0, limits=limits) as client:
        begin, tasks, due = time.perf_counter(), [], 0.0
        while (due := due + draw.expovariate(rate)) < seconds:
            body = {"input": draw.choice(texts), "seed": len(tasks), "response_format": "pcm", "sample_rate": RATE}
            await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
            tasks.append(asyncio.ensure_future(one(client, body | fields, begin + due)))
        return list(await asyncio.gather(*tasks))


def summary(answers: Sequence[Answer], rate: float, slowest: float) -> dict[str, float]:
    """Returns the numbers of a rate.

    Args:
      answers: of the requests.
      rate: at which they came, requests a second.
      slowest: seconds from the first request to the last answer.
    """
    good = [answer for answer in answers if answer.status == 200 and answer.chunks]
    found: dict[str, float] = {
        "rate": rate,
        "requests": len(answers),
        "answered": len(good),
        "refused": sum(answer.status == 429 for answer in answers),
        "failed": sum(answer.status not in (200, 429) for answer in answers),
        "audio_seconds_a_second": round(sum(answer.seconds for answer in good) / slowest, 3),
    }
    columns = {
        "first_byte": [answer.chunks[0][0] for answer in good],
        "first_audible": [answer.audible for answer in good if answer.audible is not None],
        "real_time_factor": [answer.ended / answer.seconds for answer in good],
    }
    for name, values in columns.items():
        for part in (50, 95):
            found[f"{name}_{part}"] = round(float(np.percentile(values, part)), 4) if values else float("nan")
    for buffer in BUFFERS:
        counts = [answer.underruns(buffer) for answer in good]
        found[f"underruns_{buffer * 1000:.0f}ms"] = sum(counts)
        found[f"with_underruns_{buffer * 1000:.0f}ms"] = sum(count > 0 for count in counts)
    return found


def measure(
    url: str, rates: Sequence[float], seconds: float, warmup: float = 2.0, **fields: object
) -> list[dict[str, float]]:
    """Returns the numbers of each rate, one after the other; requests of the first seconds are left out."""
    asyncio.run(at_rate(url, max(1.0, rates[0]), warmup, seed=1, **fields))
    rows = []
    for rate in rates:
        begin = time.perf_counter()
        answers = asyncio.run(at_rate(url, rate, seconds, **fields))
        rows.append(summary(answers, rate, time.perf_counter() - begin))
    return rows


def table(rows: Sequence[dict[str, float]]) -> str:
    """Returns the rates as a Markdown table."""
    head = (
        "| requests/s | answered | refused | first byte ms (median, 95 %) | first audible ms | real-time factor "
        "| underruns at 50, 100 ms | audio s/s |"
    )
    lines = [head, "|" + "---|" * 8]
    for row in rows:
        first, audible = (
            f"{1000 * row[f'{name}_50']:.0f}, {1000 * row[f'{name}_95']:.0f}"
            for name in ("first_byte", "first_audible")
        )
        factor = f"{row['real_time_factor_50']:.2f}, {row['real_time_factor_95']:.2f}"
        gaps = f"{row['underruns_50ms']:.0f}, {row['underruns_100ms']:.0f}"
        lines.append(
            f"| {row['rate']:g} | {row['answered']:.0f} of {row['requests']:.0f} | {row['refused']:.0f} | {first} "
            f"| {audible} | {factor} | {gaps} | {row['audio_seconds_a_second']:.2f} |"
        )
    return "\n".join(lines)


def write(rows: Sequence[dict[str, float]], file: Path | None, plot: Path | None) -> None:
    """Writes the numbers as JSON, and draws them."""
    if file is not None:
        file.write_text(json.dumps(rows, indent=2) + "\n")
    if plot is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = [row["rate"] for row in rows]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, label in (("first_byte", "first byte"), ("first_audible", "first audible")):
        for part, style in ((50, "-"), (95, "--")):
            axes[0].plot(rates, [row[f"{name}_{part}"] for row in rows], style, marker=".", label=f"{label}, {part} %")
    axes[0].set(ylabel="s", yscale="log")
    for buffer in BUFFERS:
        shares = [100 * row[f"with_underruns_{buffer * 1000:.0f}ms"] / max(1.0, float(row["answered"])) for row in rows]
        axes[1].plot(rates, shares, marker=".", label=f"buffer {buffer * 1000:.0f} ms")
    axes[1].set(ylabel="% of streams with an underrun")
    axes[2].plot(rates, [row["audio_seconds_a_second"] for row in rows], marker=".", label="speech made")
    axes[2].set(ylabel="s of speech a second")
    for axis in axes:
        axis.set_xlabel("requests a second")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(plot)
