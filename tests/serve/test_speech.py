"""POST /v1/audio/speech: the bytes of every format, streams of events, errors that name their field."""

import base64
import io
import json

import av
import numpy as np
import pytest
import soundfile
from helpers import tiny_model

from spark_jax.inference.request import Request

RATE = 16_000


def offline(tts, **options):
    """The speech of a request of `speak`, without a server."""
    made = {"text": "Hello there.", "gender": "female", "max_seconds": 0.5, "retries": 0}
    with tts.stream(Request(**made | options)) as stream:
        return np.concatenate([chunk.samples for chunk in stream])


def numbers(content):
    return np.frombuffer(content, "<i2")


def as_pcm(samples):
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")


def decoded(content):
    """Samples and rate of a compressed file, by FFmpeg."""
    with av.open(io.BytesIO(content)) as container:
        frames = list(container.decode(audio=0))
    return sum(frame.samples for frame in frames) / frames[0].sample_rate, frames[0].sample_rate


def events(answer):
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines.pop() == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def fault(answer):
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


def test_pcm_is_the_speech_of_the_same_request_offline(speak, tts):
    for seed in (0, 7):
        expected = as_pcm(offline(tts, seed=seed))
        np.testing.assert_array_equal(numbers(speak(seed=seed).content), expected)
    assert len(expected) > RATE // 10


def test_a_wav_file_has_its_samples_though_nobody_knew_how_many(speak, tts):
    answer = speak(response_format="wav", sample_rate=...)
    assert answer.headers["content-type"] == "audio/wav"
    samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(samples, as_pcm(offline(tts)))


@pytest.mark.parametrize(("name", "kind"), [("mp3", "mpeg"), ("opus", "ogg"), ("aac", "aac"), ("flac", "flac")])
def test_compressed_formats_are_as_long_as_the_speech(speak, tts, name, kind):
    answer = speak(response_format=name)
    assert answer.headers["content-type"] == f"audio/{kind}"
    seconds, _ = decoded(answer.content)
    assert seconds == pytest.approx(len(offline(tts)) / RATE, abs=0.15)
    assert speak(response_format=name).content == answer.content


def test_mp3_is_the_default_and_pcm_has_the_rate_of_the_contract(speak, tts):
    assert speak(response_format=...).headers["content-type"] == "audio/mpeg"
    answer = speak(sample_rate=...)
    assert answer.headers["spark-jax-sample-rate"] == "24000"
    assert len(numbers(answer.content)) == pytest.approx(len(offline(tts)) * 1.5, abs=2)


def test_speed_stretches_the_time(speak, tts):
    length = len(offline(tts, gender=None, voice=tts_voice(tts)))
    for speed in (0.25, 0.5, 2.0, 4.0):
        found = numbers(speak(voice="own", speed=speed).content)
        assert len(found) == pytest.approx(length / speed, abs=1)


def tts_voice(tts):
    return tts.codec.voice(_recording())


def _recording():
    from spark_jax.audio.containers import SoundBytes

    content = io.BytesIO()
    soundfile.write(content, tiny_model.speech(1.0), RATE, format="WAV")
    return SoundBytes("recording", content.getvalue())


@pytest.fixture(autouse=True, scope="module")
def own_voice(client):
    data = {"name": "own", "consent": "The speaker agrees."}
    answer = client.post("/v1/audio/voices", data=data, files={"audio_sample": _recording().content})
    assert answer.status_code == 200, answer.text
    yield
    client.delete("/v1/audio/voices/own")


def test_a_reference_in_the_request_and_a_stored_voice_sound_alike(speak):
    stored = speak(voice="own").content
    reference = base64.b64encode(_recording().content).decode()
    assert speak(voice=..., reference=reference, consent="The speaker agrees.").content == stored
    data = f"data:audio/wav;base64,{reference}"
    assert speak(voice=..., reference=data, consent="The speaker agrees.").content == stored
    assert fault(speak(400, voice=..., reference=reference))["code"] == "consent_required"
    assert fault(speak(400, reference=reference, consent="Yes."))["param"] == "reference"


def test_events_hold_the_bytes_and_the_usage(speak):
    whole = speak(input="One. Two.").content
    found = events(speak(input="One. Two.", stream_format="sse", captions=True))
    audio = b"".join(base64.b64decode(item["audio"]) for item in found if item["type"] == "speech.audio.delta")
    assert audio == whole
    usage = found[-1].pop("usage")
    assert found[-1] == {"type": "speech.audio.done"}
    assert usage["input_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] == len(audio) // 2 // 320
    captions = [item for item in found if item["type"] == "speech.text.span"]
    assert captions[0]["end"] is None
    assert captions[0]["text"] == "One. Two."
    assert captions[-1]["end"] == pytest.approx(len(audio) / 2 / RATE, abs=0.001)
    assert [item["type"] for item in events(speak(stream_format="sse"))].count("speech.text.span") == 0


def test_instructions_and_names_make_up_voices(speak, tts):
    expected = as_pcm(offline(tts, gender="male", pitch="low", speed="very_high"))
    asked = {"voice": "male", "instructions": "A man with a deep voice who speaks very fast."}
    np.testing.assert_array_equal(numbers(speak(**asked).content), expected)
    np.testing.assert_array_equal(numbers(speak(**asked | {"voice": ...}).content), expected)
    np.testing.assert_array_equal(
        numbers(speak(voice=..., gender="male", pitch="low", speed_level="very_high").content), expected
    )
    answer = speak(voice="own", instructions="a deep female voice")
    assert "gender and pitch" in answer.headers["spark-jax-warnings"]


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("input", {"input": ...}),
        ("input", {"input": " \n"}),
        ("input", {"input": "..."}),
        ("input", {"input": "x" * 501}),
        ("input", {"input": 5}),
        ("input", {"input": "\ud800"}),
        ("input", {"input": ["a"]}),
        ("voice", {"voice": "nobody"}),
        ("voice", {"voice": {"name": "own"}}),
        ("voice", {"voice": "../../etc/passwd"}),
        ("voice", {"voice": ...}),
        ("response_format", {"response_format": "ogg"}),
        ("stream_format", {"stream_format": "json"}),
        ("speed", {"speed": 0.2}),
        ("speed", {"speed": 4.5}),
        ("speed", {"speed": "fast"}),
        ("speed", {"speed": True}),
        ("speed", {"speed": 10**400}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 1.5}),
        ("sample_rate", {"sample_rate": 12345}),
        ("max_seconds", {"max_seconds": 1e9}),
        ("max_seconds", {"max_seconds": -1}),
        ("gender", {"voice": ..., "gender": "robot"}),
        ("gender", {"voice": "own", "gender": "male"}),
        ("pitch", {"pitch": "middling"}),
        ("pitch", {"voice": "own", "pitch": "low"}),
        ("speed_level", {"voice": "own", "speed_level": "low"}),
        ("pitch_hz", {"pitch_hz": 100}),
        ("temperature", {"temperature": 0}),
        ("top_p", {"top_p": 2}),
        ("top_k", {"top_k": 0}),
        ("normalize", {"normalize": "maybe"}),
        ("transcript", {"transcript": "Hello."}),
        ("captions", {"captions": True}),
        ("latency", {"latency": "none"}),
        ("retries", {"retries": -1}),
        ("reference", {"voice": ..., "reference": "!", "consent": "Yes."}),
        ("reference", {"voice": ..., "reference": "AAAA", "consent": "Yes."}),
        ("nonsense", {"nonsense": 1}),
    ],
)
def test_an_error_names_its_field(speak, param, fields):
    error = fault(speak(400, **fields))
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"


def test_other_errors_have_the_envelope(client, speak):
    assert fault(speak(404, model="tts-1"))["code"] == "model_not_found"
    assert speak(model="tiny")
    post = client.post
    assert fault(post("/v1/audio/speech", content=b"{", headers={"content-type": "application/json"}))["code"]
    assert fault(post("/v1/audio/speech", json=[1]))["message"].startswith("the body is a list")
    assert post("/v1/audio/speech", data={"input": "Hello."}).status_code == 415
    assert fault(client.get("/v1/audio/speech"))["message"] == "GET /v1/audio/speech: Method Not Allowed"
    assert fault(client.get("/v1/nothing"))["type"] == "invalid_request_error"
    large = b'{"input": "' + b"a" * 700_000 + b'"}'
    assert post("/v1/audio/speech", content=large, headers={"content-type": "application/json"}).status_code == 413


def test_a_page_of_another_origin_is_refused(client):
    answer = client.post("/v1/audio/speech", json={"input": "Hello."}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert fault(answer)["code"] == "wrong_origin"
    own = client.get("/v1/models", headers={"origin": "http://testserver"})
    assert own.status_code == 200
    assert own.json()["data"][0]["id"] == "tiny"


def test_a_batch_has_a_line_for_each(client, tts):
    body = {"voice": "female", "max_seconds": 0.5, "response_format": "pcm", "sample_rate": RATE, "retries": 0}
    requests = [body | {"input": "Hello there.", "seed": seed} for seed in (0, 1)]
    requests += [body, body | {"input": "Hello.", "voice": "nobody"}]
    answer = client.post("/v1/audio/speech/batch", json={"requests": requests})
    assert answer.status_code == 200
    lines = sorted(map(json.loads, answer.text.splitlines()), key=lambda line: line["index"])
    assert [line["index"] for line in lines] == [0, 1, 2, 3]
    for seed in (0, 1):
        found = numbers(base64.b64decode(lines[seed]["audio"]))
        np.testing.assert_array_equal(found, as_pcm(offline(tts, seed=seed)))
    assert lines[2]["error"]["param"] == "input"
    assert lines[3]["error"]["code"] == "voice_not_found"
    for requests in ([], [body] * 5, None, "x"):
        assert fault(client.post("/v1/audio/speech/batch", json={"requests": requests}))["param"] == "requests"
