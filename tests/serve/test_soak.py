"""A server under clients that vanish, send garbage and dawdle: everybody else gets the bytes of an offline run.

SPARK_JAX_SOAK scales the number of requests (default 400); with -s a line tells memory at every twentieth of them.
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from served import served, wait_until_ready

COUNT = int(os.environ.get("SPARK_JAX_SOAK", "400"))
AT_ONCE = 24
SLOTS = 8
ROUTE = "/v1/audio/speech"
TEXTS = ("The children played.", "Good morning.", "It rained all day.", "He closed the door.", "Where are you going?")
FIELDS = {"response_format": "pcm", "sample_rate": 16_000, "retries": 0}


class Usage(NamedTuple):
    """What a process holds."""

    megabytes: int
    files: int
    threads: int


def cases():
    return [(text, seed) for text in TEXTS for seed in range(4)]


OFFLINE = """
import base64, json, sys
import numpy as np
from spark_jax.inference.engine import EngineSettings
from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS

slots, cases = json.loads(sys.argv[1])
tts = SparkTTS.load(engine=EngineSettings(slots=slots))
for text, seed in cases:
    with tts.stream(Request(text=text, seed=seed, retries=0)) as stream:
        samples = np.concatenate([chunk.samples for chunk in stream])
    content = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    print(json.dumps([text, seed, base64.b64encode(content).decode()]))
"""


def offline():
    """The bytes of each case, without a server, in a process of its own: rounding depends on the devices of one."""
    command = [sys.executable, "-c", OFFLINE, json.dumps([SLOTS, cases()])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    return {(text, seed): base64.b64decode(content) for text, seed, content in lines}


def head(content, kind="application/json"):
    lines = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    return lines.encode() + content


async def vanish(host, port, body, draw):
    """Leaves before, at, or after the first bytes."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head(json.dumps(body).encode()))
    await writer.drain()
    await asyncio.sleep(draw.random() * 0.3)
    if draw.random() < 0.6:
        await reader.read(draw.choice([1, 1000, 20_000]))
    writer.transport.abort()


async def garbage(host, port, draw):
    """Sends what is no request, or one that is at fault; the answer is one of the client's faults, if there is any."""
    noise = draw.randbytes(draw.choice([0, 3, 500]))
    wrong = json.dumps({"input": draw.choice(["...", 5, "\ud800"]), "voice": "nobody"}).encode()
    sent = draw.choice([noise, head(noise), head(wrong), head(wrong)[:40], head(wrong, "text/plain")])
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(sent)
        async with asyncio.timeout(0.5):
            answer = await reader.read(50)
            assert answer[:10] in (b"", b"HTTP/1.1 4"), answer
    writer.transport.abort()


async def dawdle(host, port, stop):
    """Takes a byte now and then."""
    while not stop.is_set():
        reader, writer = await asyncio.open_connection(host, port, limit=16)
        writer.write(head(json.dumps({**FIELDS, "input": TEXTS[0] * 20, "sample_rate": 48_000}).encode()))
        for _ in range(100):
            if stop.is_set() or not await reader.read(1):
                break
            await asyncio.sleep(0.2)
        writer.transport.abort()


async def soak(url, expected, usage, memory):
    host, port = url.removeprefix("http://").split(":")
    draw = random.Random(0)
    done = {"whole": 0, "vanished": 0, "garbage": 0}
    numbers = iter(range(COUNT))
    limits = httpx2.Limits(max_connections=None)

    async def worker(client):
        for number in numbers:
            kind = draw.random()
            text, seed = draw.choice(cases())
            body = {**FIELDS, "input": text, "seed": seed}
            if kind < 0.2:
                await vanish(host, port, body, draw)
                done["vanished"] += 1
            elif kind < 0.25:
                await garbage(host, port, draw)
                done["garbage"] += 1
            else:
                answer = await client.post(ROUTE, json=body)
                assert answer.status_code == 200, answer.text
                assert answer.content == expected[text, seed], (text, seed)
                done["whole"] += 1
            if number % max(1, COUNT // 20) == 0:
                memory.append(usage())
                print(f"{number} requests: {memory[-1]}", flush=True)

    async with httpx2.AsyncClient(base_url=url, timeout=120.0, limits=limits) as client:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as beside:
            for _ in range(2):
                beside.create_task(dawdle(host, int(port), stop))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(worker(client))
            stop.set()
        async with asyncio.timeout(30):  # nothing is left behind
            while "spark_jax_slots_in_use 0.0" not in (text := (await client.get("/metrics")).text):
                await asyncio.sleep(0.1)
        assert "spark_jax_queue 0.0" in text
        bodies = [{**FIELDS, "input": text, "seed": seed} for text, seed in cases()[:SLOTS]]
        answers = await asyncio.gather(*(client.post(ROUTE, json=body) for body in bodies))
        for body, answer in zip(bodies, answers, strict=True):
            assert answer.content == expected[body["input"], body["seed"]]
    memory.append(usage())
    return done, text


@pytest.mark.slow
def test_soak():
    expected = offline()
    with served(["--slots", str(SLOTS), "--queue", "256"]) as server:

        def usage():
            own = Path(f"/proc/{server.process}")
            resident = int((own / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            return Usage(round(resident / 1e6), len(os.listdir(own / "fd")), len(os.listdir(own / "task")))

        memory = []
        done, text = asyncio.run(soak(server.url, expected, usage, memory))
    print(f"{COUNT} requests: {done}; {memory[-1]}")
    assert sum(done.values()) == COUNT
    assert done["vanished"] > 0.1 * COUNT
    quarter, last = memory[len(memory) // 4], memory[-1]
    assert last.megabytes < quarter.megabytes + 40, memory
    assert last.files <= quarter.files + 4, memory
    assert 'status="500"' not in text


def test_wait_until_ready_gives_up(monkeypatch):
    monkeypatch.setattr("served.WARM", 0.0)
    with pytest.raises(RuntimeError, match="not ready"):
        wait_until_ready("http://127.0.0.1:1", subprocess.Popen(["true"]))
