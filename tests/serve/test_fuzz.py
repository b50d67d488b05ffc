"""Random requests to every route: an answer each time, and none is a failure of the server."""

import base64
import json
from urllib.parse import quote

import pytest
from helpers.fake_tts import FakeTTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from spark_jax.serve.app import create_app
from spark_jax.serve.schema import PARAMS, SpeechBody
from spark_jax.serve.settings import ServerSettings

pytestmark = pytest.mark.extended

LIMITS = ServerSettings(max_characters=60, max_body=4_000, max_upload=4_000, max_batch=3, max_voices=3, timeout=5.0)
CLIENT = TestClient(create_app(FakeTTS(), LIMITS, model="tiny"), raise_server_exceptions=False)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
sensible = {
    "input": st.sampled_from(["Hello.", "Hello there. And more.", "1,000 $ 5%", "你好。", "[pause 9s] x", "<break/>x"]),
    "voice": st.sampled_from(["female", "male", "default", {"id": "x"}]),
    "response_format": st.sampled_from(["mp3", "opus", "aac", "flac", "wav", "pcm"]),
    "speed": st.floats(0.25, 4.0),
    "stream_format": st.sampled_from(["audio", "sse"]),
    "sample_rate": st.sampled_from([8000, 16000, 22050, 24000, 44100, 48000]),
    "pitch": st.sampled_from(["very_low", "high"]),
    "speed_level": st.sampled_from(["very_low", "high"]),
    "pitch_hz": st.floats(1, 1000),
    "syllables_per_second": st.floats(0.1, 10),
    "gender": st.sampled_from(["female", "male"]),
    "seed": st.integers(0, 2**32 - 1),
    "max_seconds": st.floats(0.01, 2.0),
    "captions": st.booleans(),
    "instructions": st.text(max_size=40),
    "reference": st.binary(max_size=60).map(lambda content: base64.b64encode(content).decode()),
    "consent": st.just("The speaker agrees."),
}
names = sorted(set(PARAMS) & set(SpeechBody.__annotations__))
good = st.fixed_dictionaries(
    {name: sensible[name] for name in ("input", "voice")},
    optional={name: kind for name, kind in sensible.items() if name not in ("input", "voice")},
)
# Most of a request is as it should be, or nothing but the first fault would ever be seen.
fields = st.builds(lambda body, name, value: body | {name: value}, good, st.sampled_from(names), values)
bodies = good | fields | values
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def answer(method, path, **options):
    # Parts of characters and NaN are what Python's JSON writes; others may, too.
    if "json" in options:
        options["content"] = json.dumps(options.pop("json")).encode()
        options.setdefault("headers", {"content-type": "application/json"})
    with CLIENT:
        while CLIENT.get("/ready").status_code != 200:
            pass
        found = CLIENT.request(method, path, **options)
    assert found.status_code < 500, found.text
    if found.status_code >= 400:
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}
    return found


@quick
@given(bodies)
def test_speech(body):
    answer("POST", "/v1/audio/speech", json=body)


@quick
@given(st.dictionaries(st.sampled_from(["requests", "x"]), st.lists(bodies, max_size=4) | values, max_size=2) | values)
def test_batches(body):
    found = answer("POST", "/v1/audio/speech/batch", json=body)
    if found.status_code == 200:
        errors = [json.loads(line).get("error") for line in found.text.splitlines()]
        assert not any(error and error["type"] == "server_error" for error in errors)


@quick
@given(
    st.dictionaries(st.sampled_from(["name", "mix", "x"]), values, max_size=3)
    | st.fixed_dictionaries(
        {
            "name": st.text(max_size=5),
            "mix": st.lists(st.fixed_dictionaries({"voice": st.text(max_size=3), "weight": values}), max_size=3),
        }
    )
    | values
)
def test_mixes(body):
    answer("POST", "/v1/audio/voices", json=body)


@quick
@given(
    st.binary(max_size=300),
    st.sampled_from(["application/json", "multipart/form-data", "multipart/form-data; boundary=x", "text/plain", ""]),
    st.sampled_from(["/v1/audio/speech", "/v1/audio/speech/batch", "/v1/audio/voices"]),
)
def test_bytes(content, kind, path):
    answer("POST", path, content=content, headers={"content-type": kind})


@quick
@given(
    st.dictionaries(st.sampled_from(["name", "consent", "transcript", "x"]), st.text(max_size=20), max_size=4),
    st.binary(max_size=200),
    st.sampled_from(["audio_sample", "other"]),
    st.binary(max_size=40),
)
def test_forms(data, content, name, noise):
    head = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n' for key, text in data.items()
    )
    file = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'
    body = head.encode("utf-8", "surrogatepass") + file.encode() + content + b"\r\n--x--\r\n" + noise
    answer("POST", "/v1/audio/voices", content=body, headers={"content-type": "multipart/form-data; boundary=x"})


@quick
@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]), st.text(max_size=30))
def test_paths(method, path):
    for prefix in ("/", "/v1/", "/v1/models/", "/v1/audio/voices/"):
        found = CLIENT.request(method, prefix + quote(path, errors="replace"))
        assert found.status_code < 500


@quick
@given(st.lists(st.dictionaries(st.sampled_from(["type", "text", "voice", "seed"]), scalars, max_size=3), max_size=3))
def test_conversations(messages):
    with CLIENT:
        while CLIENT.get("/ready").status_code != 200:
            pass
        with CLIENT.websocket_connect("/v1/audio/speech/stream") as socket:
            start = {"type": "start", "voice": "female", "max_seconds": 0.1}
            for message in [start, *messages, {"type": "end"}]:
                socket.send_text(json.dumps(message))
            while (found := socket.receive())["type"] != "websocket.close":
                if found.get("text") is not None:
                    error = json.loads(found["text"]).get("error")
                    assert not error or error["type"] != "server_error", error
