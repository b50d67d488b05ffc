"""Voices: uploaded, listed, mixed, deleted, kept in a folder; recordings that are no recordings."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from helpers import tiny_model
from helpers.fake_tts import FakeTTS
from helpers.tiny_config import tiny

from spark_jax.bicodec.fsq import FiniteScalarQuantizer
from spark_jax.bicodec.speaker import SpeakerEncoder
from spark_jax.errors import SparkError
from spark_jax.inference.codec import Codec
from spark_jax.model_directory.voice import Voice
from spark_jax.serve.mixing import mix_voices
from spark_jax.serve.voices import VoiceStore

RATE = 16_000
CONSENT = "I am the speaker and agree."
ROUTE = "/v1/audio/voices"


def recording(seconds=1.0, format="WAV", seed=0, **options):
    content = io.BytesIO()
    soundfile.write(content, tiny_model.speech(seconds, seed), RATE, format=format, **options)
    return content.getvalue()


@pytest.fixture
def fake(new_client, tmp_path):
    """A server of its own, with a folder of voices."""
    with new_client(FakeTTS(), voices_directory=tmp_path / "voices") as client:
        while client.get("/ready").status_code != 200:
            pass
        yield client


def upload(client, name="Ann", content=None, **fields):
    data = {"name": name, "consent": CONSENT} | fields
    data = {key: value for key, value in data.items() if value is not None}
    files = {"audio_sample": recording() if content is None else content}
    return client.post(ROUTE, data=data, files=files)


def names(client):
    return [voice["name"] for voice in client.get(ROUTE).json()["data"]]


def test_a_voice_is_kept_named_and_forgotten(fake, tmp_path, new_client):
    made = upload(fake, transcript="What it says.").json()
    assert made["name"] == "Ann"
    assert made["transcript"] == "What it says."
    assert upload(fake, "Bob").status_code == 200
    files = sorted(path.name for path in (tmp_path / "voices").iterdir())
    assert len(files) == 4
    assert f"{made['id']}.json" in files
    about = json.loads((tmp_path / "voices" / f"{made['id']}.about.json").read_text())
    assert about["consent"] == CONSENT
    assert isinstance(Voice.load(tmp_path / "voices" / f"{made['id']}.json", tiny()), Voice)
    (tmp_path / "voices" / "junk.json").write_text("{")
    (tmp_path / "voices" / f"{made['id']}.json").rename(tmp_path / "voices" / "kept.json")
    with pytest.warns(UserWarning, match="no voice is taken from it"):
        other = new_client(FakeTTS(), voices_directory=tmp_path / "voices")
    assert sorted(names(other)) == ["Bob", "kept"]
    for name in ("Ann", made["id"]):
        answer = fake.delete(f"{ROUTE}/{name}")
        assert answer.status_code == (200 if name == "Ann" else 404)
    assert names(fake) == ["Bob"]
    assert len(list((tmp_path / "voices").glob("voice_*"))) == 2


def test_the_models_own_voice_is_a_file(new_client, tmp_path):
    """As `SparkTTS.load` gives it; it has a name, speaks where none is named, and stays."""
    own = tiny().bicodec.speaker_encoder
    voice = Voice(np.arange(own.token_num, dtype=np.int32), np.zeros(0, np.int32))
    voice.save(tmp_path / "default.json", RATE)
    with new_client(FakeTTS(tmp_path / "default.json")) as client:
        while client.get("/ready").status_code != 200:
            pass
        assert names(client) == ["default"]
        bodies = [{"input": "Hello.", "response_format": "pcm"} | more for more in ({}, {"voice": "default"})]
        contents = {client.post("/v1/audio/speech", json=body).content for body in bodies}
        assert len(contents) == 1
        answer = client.post("/v1/audio/speech", json={"input": "Hello.", "voice": "default"})
        assert "spark-jax-warnings" not in answer.headers
        assert client.delete(f"{ROUTE}/default").status_code == 403


def test_a_mix_lies_between_its_voices(fake):
    for name, seed in (("Ann", 0), ("Bob", 1)):
        assert upload(fake, name, recording(seed=seed)).status_code == 200
    body = {"name": "Mix", "mix": [{"voice": "Ann", "weight": 1}, {"voice": "Bob", "weight": 3}]}
    made = fake.post(ROUTE, json=body).json()
    assert made["source"] == "mix"
    assert made["mixed_from"] == [{"voice": "Ann", "weight": 1.0}, {"voice": "Bob", "weight": 3.0}]
    for wrong, param in (
        ({"name": "Mix", "mix": body["mix"]}, "name"),
        ({"name": "New", "mix": []}, "mix"),
        ({"name": "New", "mix": [{"voice": "Ann", "weight": -1}]}, "mix"),
        ({"name": "New", "mix": [{"voice": "nobody"}]}, "mix"),
        ({"name": "New", "mix": [{"voice": "Ann", "share": 1}]}, "share"),
    ):
        answer = fake.post(ROUTE, json=wrong)
        assert answer.status_code in (400, 409)
        assert answer.json()["error"]["param"] == param


def test_mixing_is_the_mean_of_what_the_decoder_knows():
    """The codes of the mix are nearest to the weighted mean of codes; one voice alone is itself."""
    own = tiny().bicodec.speaker_encoder
    draw = np.random.default_rng(0)
    voices = [Voice(draw.integers(0, 64, own.token_num).astype(np.int32), np.zeros(0, np.int32)) for _ in range(3)]
    np.testing.assert_array_equal(mix_voices(voices[:1], [0.3], own).global_ids, voices[0].global_ids)
    np.testing.assert_array_equal(mix_voices(voices, [1e-9, 1, 1e-9], own).global_ids, voices[1].global_ids)
    codes = lambda voice: np.asarray(FiniteScalarQuantizer(own.fsq_levels).codes(jnp.asarray(voice.global_ids)))  # noqa: E731
    exact = sum(weight / 6 * codes(voice) for weight, voice in zip((1, 2, 3), voices, strict=True))
    step = 1 / (np.asarray(own.fsq_levels) // 2)
    assert (np.abs(codes(mix_voices(voices, [1, 2, 3], own)) - exact) <= step / 2 + 1e-6).all()
    for weights in ([0, 1, 1], [np.nan, 1, 1], [-1, 2, 2]):
        with pytest.raises(SparkError, match="above 0"):
            mix_voices(voices, weights, own)


@pytest.mark.extended
def test_mixes_of_the_embedded_model_are_near_the_exact_mean():
    """By the d-vector: nearer to the exact mean than to any of the two voices, though the grid has four lines."""
    codec = Codec.load(parts=("bicodec",))
    own = codec.config.bicodec.speaker_encoder
    speaker = codec.variables["bicodec"]["params"]["speaker_encoder"]
    vector = lambda ids: np.asarray(  # noqa: E731
        SpeakerEncoder(own).apply({"params": speaker}, jnp.asarray(np.stack(ids)), method="detokenize")
    )
    draw = np.random.default_rng(0)
    size = int(np.prod(own.fsq_levels))
    voices = [Voice(draw.integers(0, size, own.token_num).astype(np.int32), np.zeros(0, np.int32)) for _ in range(2)]
    mixed = mix_voices(voices, [1, 1], own)
    with jax.default_matmul_precision("highest"):
        first, second, middle = vector([*(voice.global_ids for voice in voices), mixed.global_ids])
    exact = (first + second) / 2
    apart = np.linalg.norm(middle - exact)
    assert apart < 0.75 * min(np.linalg.norm(middle - first), np.linalg.norm(middle - second))


@pytest.mark.parametrize(
    ("param", "status", "fields"),
    [
        ("consent", 400, {"consent": None}),
        ("consent", 400, {"consent": " ?! "}),
        ("name", 400, {"name": None}),
        ("name", 400, {"name": "../../etc/passwd"}),
        ("name", 400, {"name": "a/b"}),
        ("name", 400, {"name": ""}),
        ("name", 400, {"name": "female"}),
        ("name", 400, {"name": "voice_0123456789ab"}),
        ("name", 400, {"name": "x" * 65}),
        ("transcript", 400, {"transcript": "..."}),
        ("size", 400, {"size": "1"}),
    ],
)
def test_an_upload_needs_a_name_and_consent(fake, param, status, fields):
    answer = upload(fake, **fields)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    assert names(fake) == []


def test_limits_of_uploads(fake):
    assert upload(fake, content=recording(4.0)).status_code == 200
    answer = upload(fake, "Bob", recording(9.0))
    assert answer.json()["error"]["code"] == "too_long"
    # 40 s of silence in a few bytes.
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(40 * RATE), RATE, format="FLAC")
    assert upload(fake, "Bob", silence.getvalue()).json()["error"]["code"] == "too_long"
    answer = upload(fake, "Bob", bytes(500_000))
    assert answer.status_code == 413
    assert upload(fake, "Bob", bytes(1_500_000)).status_code == 413
    assert upload(fake).status_code == 409
    no_file = fake.post(ROUTE, data={"name": "Bob", "consent": CONSENT}, files={"other": b"x"})
    assert no_file.json()["error"]["param"] == "other"
    assert names(fake) == ["Ann"]


def test_there_is_room_for_so_many_voices(tmp_path):
    store = VoiceStore(tiny(), None, None, 2)
    voice = Voice(np.arange(4, dtype=np.int32), np.zeros(0, np.int32))
    for name in ("a", "b"):
        store.add(name, voice, CONSENT)
    with pytest.raises(Exception, match="no more are kept"):
        store.add("c", voice, CONSENT)


def damaged():
    """A hundred files that are no recordings of a voice, of ten kinds."""
    draw = np.random.default_rng(0)
    whole = {name: recording(1.0, name) for name in ("WAV", "FLAC", "OGG", "MP3")}
    wave = whole["WAV"]
    for number in range(10):
        yield f"noise {number}", draw.bytes(1 + 400 * number)
        yield f"cut {number}", list(whole.values())[number % 3][: 4 * number]
        head = bytearray(wave)
        head[4 + 2 * number : 12 + 4 * number] = draw.bytes(8 + 2 * number)
        yield f"header {number}", bytes(head[: 20 + number])
        flac = bytearray(whole["FLAC"])
        flac[4 : 40 + number] = draw.bytes(36 + number)
        yield f"flac {number}", bytes(flac)
        ogg = bytearray(whole["OGG"])
        ogg[: 20 + number] = draw.bytes(20 + number)
        yield f"ogg {number}", bytes(ogg)
        yield f"text {number}", f"<html><body>Not found {number}</body></html>".encode()
        yield f"short {number}", recording(0.005 + 0.008 * number)
        rate = bytearray(wave)
        rate[24:28] = (number * 97).to_bytes(4, "little")
        yield f"rate {number}", bytes(rate)
        silent = io.BytesIO()
        soundfile.write(silent, np.full(RATE, number * 1e-5 / 2), RATE, format="WAV", subtype="FLOAT")
        yield f"silent {number}", silent.getvalue()
        broken = tiny_model.speech(1.0)
        broken[number * 100] = [np.nan, np.inf][number % 2]
        floats = io.BytesIO()
        soundfile.write(floats, broken, RATE, format="WAV", subtype="FLOAT")
        yield f"not finite {number}", floats.getvalue()


def test_a_hundred_damaged_recordings_are_refused_with_a_reason(fake):
    count = 0
    for name, content in damaged():
        answer = upload(fake, content=content)
        assert 400 <= answer.status_code < 500, name
        error = answer.json()["error"]
        assert error["param"] == "audio_sample", name
        assert len(error["message"]) > 20, name
        count += 1
    assert count == 100
    assert names(fake) == []
