"""The body of a request for speech: OpenAI's fields and our own, checked where they enter."""

import base64
import binascii
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from spark_jax.inference.parts import LATENCIES
from spark_jax.serve.errors import ApiError, bad_request
from spark_jax.serve.settings import ServerSettings

FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
STREAM_FORMATS = ("audio", "sse")
MIN_SPEED, MAX_SPEED = 0.25, 4.0
SAMPLE_RATES = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)
PCM_RATE = 24_000  # of the contract: PCM has no header that could say another


@dataclasses.dataclass(frozen=True)
class SpeechBody:
    """A request for speech, as it came.

    Attributes:
      input: what is said.
      model: a name that the server must know; None: the one that it has.
      voice: a name, or the id of a stored voice as {"id": …}.
      instructions: see `instructions`.
      response_format: one of `FORMATS`.
      speed: times the ordinary speed.
      stream_format: "audio": the bytes of the format; "sse": server-sent events with them.
      sample_rate: Hz; None: the model's, 24,000 for PCM.
      latency: "exact" or "low"; see `SparkTTS.stream`.
      captions: events of "sse" tell what is heard when.
      reference: a recording to clone, in base64; it goes with `consent`.
      consent: the statement that its speaker agrees.
      speed_level: the level of `Request.speed`; `speed` is OpenAI's number.
      transcript, gender, pitch, pitch_hz, syllables_per_second, seed, temperature, top_k, top_p, greedy, max_seconds,
        normalize, retries: see `Request`.
    """

    input: str
    model: str | None = None
    voice: str | None = None
    instructions: str | None = None
    response_format: str = "mp3"
    speed: float = 1.0
    stream_format: str = "audio"
    sample_rate: int | None = None
    latency: str = "exact"
    captions: bool = False
    reference: str | None = None
    consent: str | None = None
    transcript: str | None = None
    gender: str | None = None
    pitch: str | None = None
    speed_level: str | None = None
    pitch_hz: float | None = None
    syllables_per_second: float | None = None
    seed: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    max_seconds: float | None = None
    normalize: str = "auto"
    retries: int | None = None


# Fields of the body by what messages of a `Request` begin with.
PARAMS = {field.name: field.name for field in dataclasses.fields(SpeechBody)} | {
    "text": "input",
    "speed": "speed_level",
}
_KINDS: dict[str, tuple[type, ...]] = {
    name: typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for name, hint in typing.get_type_hints(SpeechBody).items()
}
_WORDS = {str: "a string", float: "a number", int: "a whole number", bool: "true or false"}


def parse_json(content: bytes) -> Any:
    """Returns the value of a JSON body.

    Raises:
      ApiError: it is not JSON.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise bad_request(None, f"the body is not valid JSON: {error}", "invalid_json") from error


def read_object(body: Any, known: Mapping[str, Any], what: str = "the body") -> dict[str, Any]:
    """Returns a JSON object whose keys are all known.

    Raises:
      ApiError: it is no object, or has another key.
    """
    if not isinstance(body, dict):
        raise bad_request(None, f"{what} is {_kind(body)}, expected a JSON object")
    for key in body:
        if key not in known:
            raise bad_request(key[:64], f"unknown field {key!r}, expected some of {', '.join(known)}", "unknown_field")
    return body


def read_speech(body: Any, settings: ServerSettings) -> SpeechBody:
    """Checks a JSON body and returns it; a field that is null counts as left out.

    Raises:
      ApiError: 400, with the field that is at fault.
    """
    body = read_object(body, _KINDS)
    values = {name: _typed(name, value) for name, value in body.items() if value is not None}
    if "input" not in values:
        raise bad_request("input", "input is missing: what is to be said", "missing_field")
    read = SpeechBody(**values)
    if len(read.input) > settings.max_characters:
        message = f"input has {len(read.input)} characters, expected at most {settings.max_characters}"
        raise bad_request("input", message, "string_above_max_length")
    _one_of("response_format", read.response_format, FORMATS)
    _one_of("stream_format", read.stream_format, STREAM_FORMATS)
    _one_of("latency", read.latency, LATENCIES)
    if not MIN_SPEED <= read.speed <= MAX_SPEED:
        raise bad_request("speed", f"speed is {read.speed:g}, expected {MIN_SPEED:g} to {MAX_SPEED:g}")
    if read.sample_rate is not None and read.sample_rate not in SAMPLE_RATES:
        expected = ", ".join(map(str, SAMPLE_RATES))
        raise bad_request("sample_rate", f"sample_rate is {read.sample_rate}, expected one of {expected}")
    if read.max_seconds is not None and read.max_seconds > settings.max_seconds:
        raise bad_request(
            "max_seconds", f"max_seconds is {read.max_seconds:g}, expected at most {settings.max_seconds:g}"
        )
    if read.captions and read.stream_format != "sse":
        raise bad_request("captions", 'captions need "stream_format": "sse": they are events')
    if read.transcript is not None and read.reference is None:
        raise bad_request("transcript", "transcript needs a reference: it says what the reference recording says")
    if read.reference is not None:
        check_consent(read.consent)
    return read


def check_consent(statement: str | None) -> str:
    """Returns the statement that the speaker of a recording agrees to be cloned.

    Raises:
      ApiError: there is none.
    """
    if statement is None or not any(character.isalpha() for character in statement):
        raise bad_request(
            "consent",
            'consent is missing: state that the speaker agrees, such as "I am the speaker and agree to the cloning"',
            "consent_required",
        )
    return statement


def decode_recording(text: str, settings: ServerSettings) -> bytes:
    """Returns the bytes of a recording that came in base64.

    Raises:
      ApiError: it is not base64, or too large.
    """
    try:
        content = base64.b64decode(text.partition("base64,")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request("reference", f"reference is not base64: {error}") from error
    return check_size(content, "reference", settings)


def check_size(content: bytes, param: str, settings: ServerSettings) -> bytes:
    """Returns an upload that is not too large.

    Raises:
      ApiError: 413.
    """
    if len(content) > settings.max_upload:
        message = f"{param} has {len(content)} bytes, expected at most {settings.max_upload}"
        raise ApiError(413, message, param=param, code="too_large")
    return content


def _typed(name: str, value: Any) -> Any:
    kinds = _KINDS[name]
    if name == "voice" and isinstance(value, dict):
        if set(value) == {"id"} and isinstance(value["id"], str):
            return value["id"]
        raise bad_request("voice", 'voice is an object, expected a name, or {"id": "…"}')
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise bad_request(name, f"{name} is too large a number") from error
    wanted = next(kind for kind in kinds if kind is not types.NoneType)
    if type(value) is not wanted:
        raise bad_request(name, f"{name} is {_kind(value)}, expected {_WORDS[wanted]}", "invalid_type")
    return value


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise bad_request(name, f"{name} is {value[:64]!r}, expected one of {', '.join(allowed)}")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", **_WORDS}
    return names.get(type(value), type(value).__name__)
