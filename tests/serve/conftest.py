"""Servers in this process: on a model that speaks noise at once, and, extended, on a tiny model of random weights."""

import json
import time

import pytest
from helpers.fake_tts import FakeTTS
from starlette.testclient import TestClient

from spark_jax.inference.engine import EngineSettings
from spark_jax.inference.parts import StreamSettings
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.serve.app import create_app
from spark_jax.serve.settings import ServerSettings

# Small limits, so that tests reach them.
SETTINGS = ServerSettings(
    queue=4, max_characters=500, max_body=20_000, max_upload=400_000, max_upload_seconds=8.0, max_batch=4, max_voices=30
)


@pytest.fixture(scope="session")
def new_client():
    """Makes a client of a new server; used as a context."""

    def make(tts, settings=SETTINGS, **options):
        return TestClient(create_app(tts, settings, model="tiny", **options), raise_server_exceptions=False)

    return make


def wait_until_ready(client):
    end = time.monotonic() + 300
    while client.get("/ready").status_code != 200:
        assert client.get("/health").json()["status"] != "failed"
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="session", params=["fake", pytest.param("tiny", marks=pytest.mark.extended)])
def tts(request):
    """A model: the fake one in the quick suite."""
    if request.param == "fake":
        return FakeTTS()
    engine = EngineSettings(slots=4, block=8, capacity=256)
    directory = request.getfixturevalue("tiny_model_directory")
    return SparkTTS.load(directory, engine=engine, stream=StreamSettings(parts=(8, 32)))


@pytest.fixture(scope="session")
def client(tts, new_client):
    with new_client(tts) as made:
        wait_until_ready(made)
        yield made


@pytest.fixture
def speak(client):
    """Asks for speech of a made-up voice; short, for random weights come to no end."""

    def ask(expected=200, **fields):
        body = {"input": "Hello there.", "voice": "female", "max_seconds": 0.5, "response_format": "pcm", "retries": 0}
        body |= {"sample_rate": 16_000} | fields
        content = json.dumps({name: value for name, value in body.items() if value != ...})
        answer = client.post("/v1/audio/speech", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == expected, answer.text
        return answer

    return ask
