"""The server at work: queues, times, clients that leave or dawdle, keys, signals, counters."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from helpers import live_server
from helpers.fake_tts import FakeTTS
from starlette.websockets import WebSocketDisconnect

from spark_jax.serve.app import create_app
from spark_jax.serve.errors import ApiError
from spark_jax.serve.settings import ServerSettings
from spark_jax.serve.speaker import Speaker

ROUTE = "/v1/audio/speech"
LONG = "A text that takes a while to be spoken, word by word."


def body(**fields):
    return {"input": LONG, "voice": "female", "response_format": "pcm", "sample_rate": 16_000} | fields


def request_bytes(**fields):
    content = json.dumps(body(**fields)).encode()
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def eventually(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def metric(address, name):
    text = urllib.request.urlopen(f"{address}/metrics").read().decode()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)
    }


@pytest.fixture
def slow():
    model = FakeTTS()
    model.pace = 0.03
    return model


@pytest.fixture
def address(slow):
    settings = ServerSettings(queue=4, timeout=20.0, stall=1.0)
    with live_server.running(create_app(slow, settings, model="tiny")) as url:
        yield url


def test_clients_that_leave_free_their_slots_at_once(slow, address):
    for read in (0, 1):
        clients = [connect(address) for _ in range(4)]
        for client in clients:
            client.sendall(request_bytes(input=LONG * 20))  # which takes more than 10 s
        eventually(lambda: slow.engine.running == 4)
        for client in clients:
            if read:
                assert client.recv(100)
            client.close()
        begin = time.monotonic()
        eventually(lambda: slow.engine.running == 0)
        assert time.monotonic() - begin < 2.0
    assert metric(address, "spark_jax_vanished_clients_total") == {"spark_jax_vanished_clients_total": 8.0}


def test_too_many_are_told_to_come_again(slow, address):
    clients = [connect(address) for _ in range(8)]
    for client in clients:
        client.sendall(request_bytes())
    eventually(lambda: slow.engine.running == 8)
    with connect(address) as late:
        late.sendall(request_bytes())
        answer = late.recv(4000).decode()
    assert answer.startswith("HTTP/1.1 429")
    assert "retry-after: " in answer.lower()
    assert metric(address, "spark_jax_queue") == {"spark_jax_queue": 4.0}
    assert metric(address, "spark_jax_slots_in_use") == {"spark_jax_slots_in_use": 4.0}
    for client in clients:
        client.close()
    eventually(lambda: slow.engine.running == 0)
    with connect(address) as late:
        late.sendall(request_bytes())
        assert late.recv(100).startswith(b"HTTP/1.1 200")


def test_a_client_that_takes_nothing_stalls_nobody_and_is_left(address, slow):
    slow.pace = 0.0
    with connect(address) as dawdler:
        dawdler.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        # Longer than what the buffers between take.
        dawdler.sendall(request_bytes(input=LONG * 60, response_format="wav", sample_rate=48_000))
        eventually(lambda: slow.engine.running == 1)
        begin = time.monotonic()
        assert len(urllib.request.urlopen(_post(address), timeout=10).read()) > 10_000
        assert time.monotonic() - begin < 1.0
        eventually(lambda: slow.engine.running == 0)


def test_the_speech_must_be_made_in_time(new_client, slow):
    slow.pace = 0.0  # in the warm-up
    with new_client(slow, ServerSettings(timeout=0.05)) as client:
        ready(client)
        slow.pace = 0.15
        answer = client.post(ROUTE, json=body())
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
    slow.pace = 0.0
    with new_client(slow, ServerSettings(timeout=0.4)) as client:
        ready(client)
        slow.pace = 0.15
        answer = client.post(ROUTE, json=body(stream_format="sse"))
        assert answer.status_code == 200
        last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["type"] == "error"
        assert last["error"]["code"] == "timeout"
    assert slow.engine.running == 0


def ready(client):
    while client.get("/ready").status_code != 200:
        time.sleep(0.01)


def test_failures_are_told_without_what_is_inside(new_client, caplog):
    model = FakeTTS()
    model.fail = {"boom": RuntimeError("the inside")}
    with new_client(model) as client:
        ready(client)
        answer = client.post(ROUTE, json=body(input="boom", stream_format="sse"))
        last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["type"] == "server_error"
        assert "inside" not in answer.text
        assert "the inside" in caplog.text
        assert client.post(ROUTE, json=body(input="fine")).status_code == 200
    with live_server.running(create_app(model, model="tiny")) as url:
        request = _post(url, input="boom")
        with pytest.raises(http.client.IncompleteRead):  # the stream breaks off: an end would be a lie
            urllib.request.urlopen(request).read()
    assert model.engine.running == 0


def test_nothing_is_spoken_before_the_warm_up(slow):
    async def check():
        speaker = Speaker(slow, ServerSettings())
        with pytest.raises(ApiError) as told, speaker.place():
            pass
        assert told.value.status == 503
        await speaker.warm_up()
        with speaker.place():
            assert speaker.state == "ready"

    asyncio.run(check())


def test_a_model_that_cannot_warm_up_is_told(new_client, monkeypatch):
    model = FakeTTS()
    monkeypatch.setattr(FakeTTS, "warmup", lambda self: 1 / 0)
    with new_client(model) as client:
        eventually(lambda: client.get("/health").status_code == 503)
        assert client.get("/ready").status_code == 503
        assert client.post(ROUTE, json=body()).json()["error"]["code"] == "server_failed"


def test_keys(new_client):
    settings = ServerSettings(api_keys=("first key", "second"))
    with new_client(FakeTTS(), settings) as client:
        for path in ("/health", "/ready", "/", "/main.js", "/metrics"):
            assert client.get(path).status_code in (200, 503)
        for headers in (
            {},
            {"Authorization": "Bearer third"},
            {"Authorization": "second"},
            {"Authorization": "Bearer "},
        ):
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"{ROUTE}/stream", headers=headers):
                pass
        for key in settings.api_keys:
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for name in ("main.js", "style.css", "index.html"):
        text = client.get(f"/{name}").text
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text
    for path in ("/../pyproject.toml", "/%2e%2e/app.py", "/page", "/main.js/x"):
        assert client.get(path).status_code == 404


def test_counters(address, slow):
    slow.pace = 0.0
    content = urllib.request.urlopen(_post(address)).read()
    seconds = len(content) / 2 / 16_000
    found = metric(address, "spark_jax_")
    warm = found["spark_jax_audio_seconds_total"] - seconds
    assert 0 < warm <= 2.0
    assert found["spark_jax_first_audio_seconds_count"] == 1.0
    assert found["spark_jax_real_time_factor_count"] == 1.0
    assert found['spark_jax_requests_total{route="/v1/audio/speech",status="200"}'] == 1.0
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(address + ROUTE)
    assert metric(address, "spark_jax_errors_total") == {'spark_jax_errors_total{code="405"}': 1.0}


@pytest.mark.extended
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_at_work_finish(sent):
    """A process of its own: the answer at work comes whole, nobody else is let in, and the end is a good one."""
    program = (
        "from helpers.fake_tts import FakeTTS\n"
        "from spark_jax.serve.run import create_app, listen, run\n"
        "model, listener = FakeTTS(), listen('127.0.0.1', 0)\n"
        "model.pace = 0.05\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "run(create_app(model, model='tiny'), listener, 20.0)\n"
    )
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    address = f"http://127.0.0.1:{process.stdout.readline().strip()}"

    def is_ready():
        try:
            return urllib.request.urlopen(f"{address}/ready").status == 200
        except OSError:
            return False

    eventually(is_ready, 60)
    whole = len(urllib.request.urlopen(_post(address)).read())
    contents = []
    reader = threading.Thread(target=lambda: contents.append(urllib.request.urlopen(_post(address)).read()))
    reader.start()
    time.sleep(0.3)
    process.send_signal(sent)
    reader.join(20)
    assert [len(content) for content in contents] == [whole]
    assert process.wait(20) == 0


def _post(address, **fields):
    content = json.dumps(body(**fields)).encode()
    return urllib.request.Request(address + ROUTE, content, {"Content-Type": "application/json"})
