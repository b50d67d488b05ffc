"""From the body of a request to what is spoken and how it is sent."""

import asyncio
import dataclasses

from spark_jax.errors import SparkError
from spark_jax.inference.request import Request
from spark_jax.model_directory.voice import Voice
from spark_jax.serve.encoders import Encoder
from spark_jax.serve.errors import ApiError, bad_request, from_spark_error
from spark_jax.serve.schema import PARAMS, SpeechBody, decode_recording
from spark_jax.serve.settings import ServerSettings
from spark_jax.serve.speaker import Speaker
from spark_jax.serve.style import MADE_UP, Style, resolve_style
from spark_jax.serve.voices import VoiceStore

_SAME = ("seed", "temperature", "top_k", "top_p", "greedy", "max_seconds", "normalize")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A request that can be spoken.

    Attributes:
      body: as it came.
      request: for the model.
      stretch: by how much the speech is made faster.
      input_tokens: of the text.
      warnings: what of it has no effect, or may not sound as it should.
    """

    body: SpeechBody
    request: Request
    stretch: float
    input_tokens: int
    warnings: tuple[str, ...]

    def encoder(self, model_rate: int) -> Encoder:
        """Returns a new encoder for its speech; the samples are of `model_rate`, in Hz."""
        return Encoder(self.body.response_format, model_rate, self.body.sample_rate, self.stretch)


async def prepare(
    body: SpeechBody, speaker: Speaker, voices: VoiceStore, settings: ServerSettings, model: str
) -> Prepared:
    """Checks what a request asks for and finds or makes its voice.

    Args:
      body: of the request.
      speaker: with the model.
      voices: that it may name.
      settings: the limits.
      model: the name of the model.

    Raises:
      ApiError: it cannot be spoken, by the field that is at fault.
    """
    if body.model not in (None, model):
        message = f"model {body.model[:64]!r} is unknown, expected {model!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    config = speaker.tts.config
    style, warnings = resolve_style(body, config.text)
    voice, found = await _voice(body, style, speaker, voices, settings)
    try:
        request = _request(body, style, voice)
        _, ignored = await asyncio.to_thread(speaker.tts.plan, request)  # it may put numbers into words
        tokens = len(speaker.tts.tokenizer.encode_text(body.input))
    except SparkError as error:
        raise from_spark_error(error, PARAMS, "input") from error
    return Prepared(body, request, style.stretch, tokens, (*warnings, *found, *ignored))


def _request(body: SpeechBody, style: Style, voice: Voice | None) -> Request:
    own = {name: getattr(body, name) for name in _SAME}
    if body.retries is not None:
        own["retries"] = body.retries
    said = {field.name: getattr(style, field.name) for field in dataclasses.fields(style) if field.name != "stretch"}
    return Request(text=body.input, voice=voice, **said, **own)


async def _voice(
    body: SpeechBody, style: Style, speaker: Speaker, voices: VoiceStore, settings: ServerSettings
) -> tuple[Voice | None, list[str]]:
    """Returns the voice of a request, None where it is made up or the model's own, and what may be wrong with it."""
    named = body.voice not in (None, *MADE_UP)
    if body.reference is not None:
        if body.voice is not None or body.gender is not None:
            other = "voice" if body.voice is not None else "gender"
            raise bad_request("reference", f"{other} and reference exclude each other: give one of them")
        content = decode_recording(body.reference, settings)
        return await speaker.clone(content, body.transcript, "reference")
    if named and body.gender is not None:
        raise bad_request("gender", "voice and gender exclude each other: give one of them")
    if named:
        stored = voices.find(body.voice)
        return None if stored.source == "model" else stored.voice, []  # its own voice asks nothing of the model
    if style.gender is None and speaker.tts.default_voice is None:
        raise bad_request("voice", f"voice is missing: the model has none of its own, give one, or {MADE_UP[0]}")
    return None, []
