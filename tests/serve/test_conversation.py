"""The WebSocket: sentences as they are complete, one voice for all of them, errors that are told."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from helpers import live_server
from helpers.fake_tts import FakeTTS
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from spark_jax.inference.long_text import PAUSES, piece_seed
from spark_jax.inference.request import Request
from spark_jax.serve.app import create_app
from spark_jax.serve.session import Sentences

ROUTE = "/v1/audio/speech/stream"
RATE = 16_000
START = {"type": "start", "voice": "female", "sample_rate": RATE, "max_seconds": 0.4, "retries": 0, "seed": 5}


def converse(client, messages):
    """All that the server says, JSON and bytes."""
    with client.websocket_connect(ROUTE) as socket:
        for message in messages:
            socket.send_text(message if isinstance(message, str) else json.dumps(message))
        told, audio = [], b""
        while True:
            message = socket.receive()
            if message["type"] == "websocket.close":
                return told, audio
            if message.get("bytes") is not None:
                audio += message["bytes"]
            else:
                told.append(json.loads(message["text"]))


def text(part):
    return {"type": "text", "text": part}


def test_text_in_pieces_becomes_speech_sentence_by_sentence(client, tts):
    pieces = ["Hel", "lo the", "re. How are", " you? I am Dr", ". Smith.", " "]
    told, audio = converse(client, [START, *map(text, pieces), {"type": "end"}])
    assert [item["type"] for item in told if item["type"] != "speech.text.span"] == ["started", "speech.audio.done"]
    assert told[0]["sample_rate"] == RATE
    spans = {item["index"]: item for item in told if item["type"] == "speech.text.span"}
    assert [spans[number]["text"] for number in sorted(spans)] == ["Hello there.", "How are you?", "I am Dr. Smith."]
    # The voice that is made up for the first sentence speaks the others.
    expected, voice = [], None
    for number, sentence in enumerate(("Hello there.", "How are you?", "I am Dr. Smith.")):
        own = {"gender": "female"} if voice is None else {"voice": voice}
        seed = piece_seed(5, number)
        with tts.stream(Request(text=sentence, seed=seed, max_seconds=0.4, retries=0, **own)) as stream:
            samples = np.concatenate([chunk.samples for chunk in stream])
            voice = stream.voice
        expected += [np.zeros(round(PAUSES["sentence"] * RATE) if number else 0, np.float32), samples]
    expected = np.round(np.clip(np.concatenate(expected), -1, 1) * 32767).astype("<i2")
    np.testing.assert_array_equal(np.frombuffer(audio, "<i2"), expected)
    assert spans[2]["end"] == pytest.approx(len(expected) / RATE, abs=0.001)
    assert told[-1]["usage"]["output_tokens"] > 0


def test_a_sentence_is_spoken_before_the_next_one_comes(client):
    with client.websocket_connect(ROUTE) as socket:
        socket.send_json(START)
        assert socket.receive_json()["type"] == "started"
        socket.send_json(text("One. Two"))
        assert socket.receive_json()["text"] == "One."
        assert len(socket.receive_bytes()) > 100
        socket.send_json({"type": "flush"})
        found = []
        while not any("Two" in item for item in found):
            found.append(str(socket.receive()))
        socket.send_json({"type": "end"})


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"type": "text", "text": "Hello."}], "type"),
        ([["start"]], None),
        (["{"], None),
        ([{**START, "input": "Hello."}], "input"),
        ([{**START, "voice": "nobody"}], "voice"),
        ([{**START, "stream_format": "sse"}], "stream_format"),
        ([{**START, "speed": 9}], "speed"),
        ([START, {"type": "stop"}], "type"),
        ([START, {"type": "text"}], "text"),
        ([START, {"type": "text", "text": 5}], "text"),
        ([START, {"type": "flush", "text": "x"}], "text"),
        ([START, text("x" * 600)], "text"),
    ],
)
def test_errors_end_a_conversation(client, messages, param):
    told, _ = converse(client, messages)
    assert told[-1]["type"] == "error"
    assert told[-1]["error"]["param"] == param


def test_a_client_that_leaves_frees_its_slot(new_client):
    model = FakeTTS()
    model.pace = 0.05
    with new_client(model) as client:
        while client.get("/ready").status_code != 200:
            pass
        with client.websocket_connect(ROUTE) as socket:
            socket.send_json({**START, "max_seconds": 5.0})
            socket.send_json(text("A long sentence that takes a while to be spoken. Another"))
            socket.receive_json()
            socket.receive_json()
            assert model.engine.running == 1
        while model.engine.running:
            pass
        assert client.post("/v1/audio/speech", json={"input": "Hi.", "voice": "male"}).status_code == 200


def test_over_a_real_connection():
    model = FakeTTS()
    with live_server.running(create_app(model, model="tiny")) as url:
        with connect(url.replace("http", "ws") + ROUTE) as socket:
            for message in (START, text("Hello there. And"), {"type": "end"}):
                socket.send(json.dumps(message))
            found = list(socket)
        told = [json.loads(item) for item in found if isinstance(item, str)]
        assert [item["type"] for item in told][:: len(told) - 1] == ["started", "speech.audio.done"]
        assert sum(len(item) for item in found if isinstance(item, bytes)) > 10_000
        assert socket.close_code == 1000
        model.pace = 0.05
        with connect(url.replace("http", "ws") + ROUTE) as socket:
            for message in ({**START, "max_seconds": 20.0}, text("A long text. " * 30)):
                socket.send(json.dumps(message))
            while isinstance(socket.recv(), str):
                pass
            assert model.engine.running == 1
            socket.socket.shutdown(2)  # gone without a word
        end = time.monotonic() + 5
        while model.engine.running:
            assert time.monotonic() < end


@pytest.fixture
def spoken_to_the_end():
    """Ends a server while the first sentence is spoken: all that a client gets, its socket, and the server's end."""

    def speak(messages, drain):
        model = FakeTTS()
        model.pace = 0.05
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(live_server.running(create_app(model, model="tiny"), drain))
            with connect(url.replace("http", "ws") + ROUTE) as socket:
                for message in messages:
                    socket.send(json.dumps(message))
                found = [socket.recv()]
                while len(messages) > 1 and isinstance(found[-1], str):
                    found.append(socket.recv())
                end = threading.Thread(target=stack.close)
                end.start()
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        found.append(socket.recv())
            end.join(30)
            assert not end.is_alive() and model.engine.running == 0
            with pytest.raises(urllib.error.URLError):
                urllib.request.urlopen(f"{url}/health")
        return [json.loads(item) for item in found if isinstance(item, str)], socket

    return speak


def test_a_server_that_ends_speaks_the_sentences_that_have_come(spoken_to_the_end):
    told, socket = spoken_to_the_end([START, text("Hello there. How are you? And")], 20.0)
    spans = [item for item in told if item["type"] == "speech.text.span" and item["end"] is not None]
    assert [span["text"] for span in spans] == ["Hello there.", "How are you?"]
    assert told[-1]["type"] == "speech.audio.done" and told[-1]["usage"]["output_tokens"] > 0
    assert (socket.close_code, socket.close_reason) == (1001, "the server ends")


def test_a_server_that_ends_has_a_limit(spoken_to_the_end):
    begin = time.monotonic()
    told, socket = spoken_to_the_end([{**START, "max_seconds": 20.0}, text("A long sentence. " * 30)], 1.0)
    assert time.monotonic() - begin < 15
    assert told[-1]["type"] == "speech.text.span" and socket.close_code == 1012


def test_a_conversation_that_has_not_begun_ends_with_the_server(spoken_to_the_end):
    begin = time.monotonic()
    told, socket = spoken_to_the_end([START], 20.0)
    assert [item["type"] for item in told] == ["started", "speech.audio.done"]
    assert socket.close_code == 1001 and time.monotonic() - begin < 10


def test_sentences():
    sentences = Sentences(100)
    assert sentences.push("It costs 3") == []
    assert sentences.push(".50 at Mr. Brown's. And") == ["It costs 3.50 at Mr. Brown's."]
    assert sentences.push(" so on.\n") == ["And so on."]
    assert sentences.waiting == 0
    assert sentences.push("... ") == []
    assert sentences.push("你好。再") == ["你好。"]
    assert sentences.flush() == ["再"]
    assert sentences.flush() == []
