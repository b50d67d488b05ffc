"""The official client of OpenAI's API speaks with the server as it is."""

import httpx2
import openai
import pytest
from helpers import live_server
from helpers.fake_tts import FakeTTS

from spark_jax.serve.app import create_app
from spark_jax.serve.run import DrainingServer
from spark_jax.serve.settings import ServerSettings


@pytest.fixture(scope="module")
def client():
    settings = ServerSettings(api_keys=("secret",))
    with (
        live_server.running(create_app(FakeTTS(), settings, model="tiny")) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as made,
    ):
        yield made


def test_it_speaks(client, tmp_path):
    asked = {"model": "tiny", "voice": "female", "input": "Hello there.", "instructions": "Speak slowly."}
    whole = client.audio.speech.create(**asked, response_format="wav", speed=1.25)
    assert whole.content[:4] == b"RIFF"
    whole.write_to_file(tmp_path / "out.wav")
    assert (tmp_path / "out.wav").read_bytes() == whole.content
    assert client.audio.speech.create(**asked).response.headers["content-type"] == "audio/mpeg"
    with client.audio.speech.with_streaming_response.create(**asked, response_format="pcm") as stream:
        assert len(b"".join(stream.iter_bytes())) > 10_000
    with client.audio.speech.with_streaming_response.create(**asked, stream_format="sse") as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert "speech.audio.delta" in lines[0]
    assert "speech.audio.done" in lines[-1]
    seeded = client.audio.speech.create(**asked, response_format="pcm", extra_body={"seed": 1})
    assert seeded.content != client.audio.speech.create(**asked, response_format="pcm").content


def test_it_lists_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "spark-jax"


def test_errors_are_those_of_the_client(client):
    asked = {"model": "tiny", "voice": "female", "input": "Hello there."}
    with pytest.raises(openai.BadRequestError) as told:
        client.audio.speech.create(**asked | {"voice": "nobody"})
    assert told.value.param == "voice"
    assert told.value.code == "voice_not_found"
    with pytest.raises(openai.NotFoundError):
        client.audio.speech.create(**asked | {"model": "tts-1"})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_the_server_is_more_patient_than_its_clients():
    """One that hung up first would do so now and then while the next request is on its way."""
    server = DrainingServer(create_app(FakeTTS(), model="tiny"), drain=1.0)
    assert server.config.timeout_keep_alive > 2 * httpx2.Limits().keepalive_expiry
