"""What a model is asked for a request: the voice, the prompt of each piece of the text, and how much it may say."""

import math
from pathlib import Path
from typing import Any

from spark_jax.errors import SparkError
from spark_jax.inference.codec import Codec
from spark_jax.inference.request import Request
from spark_jax.model_directory.voice import Voice, check_ids
from spark_jax.text import attributes
from spark_jax.text.language import language_of
from spark_jax.text.prompt import Prompt, cloning_prompt, creation_prompt
from spark_jax.text.reading import read_transcript
from spark_jax.text.tokenizer import SparkTokenizer


class Prompter:
    """Makes prompts of requests for one model."""

    def __init__(self, codec: Codec, tokenizer: SparkTokenizer, default_voice: Path | None):
        """Args:
        codec: encodes references.
        tokenizer: of the LLM.
        default_voice: file of the voice that speaks where a request names no other.
        """
        self.config = codec.config
        self._codec, self._tokenizer, self._default_voice = codec, tokenizer, default_voice

    def voice(self, request: Request) -> Voice | None:
        """Returns the voice that a request names; None: the model makes one up.

        Raises:
          SparkError: the voice or the reference is bad, or there is no default voice.
        """
        if request.gender is not None:
            return None
        if request.reference is not None:
            return self._codec.voice(request.reference, request.transcript)
        voice = self._default_voice if request.voice is None else request.voice
        if voice is None:
            raise SparkError("the model has no default voice: give a voice, a reference or a gender")
        if isinstance(voice, Voice):
            speech = voice.transcript is not None
            check_ids(voice.global_ids, voice.semantic_ids, self.config, "voice", speech)
            return voice
        return Voice.load(voice, self.config)

    def prompt(self, request: Request, text: str, voice: Voice | None) -> Prompt:
        """Returns the prompt of a piece; without a voice one is made up."""
        values = {}
        if request.pitch_hz is not None:
            values["pitch_value"] = attributes.pitch_value(request.pitch_hz)
            values["speed_value"] = attributes.speed_value(request.syllables_per_second)
        if voice is None:
            gender, (pitch_level, speed_level) = attributes.gender_id(request.gender), _levels(request)
            return creation_prompt(self._tokenizer, text, gender, pitch_level, speed_level, **values)
        if voice.transcript is None:
            return cloning_prompt(self._tokenizer, text, voice.global_ids, **values)
        transcript = read_transcript(voice.transcript, self.config.text, request.normalize)
        return cloning_prompt(self._tokenizer, text, voice.global_ids, transcript, voice.semantic_ids, **values)

    def sampling(self, request: Request) -> dict[str, Any]:
        """Returns temperature, top-k and top-p, the request's or the model's own."""
        own, names = self.config.sampling, ("temperature", "top_k", "top_p")
        found = {
            name: getattr(own, name) if getattr(request, name) is None else getattr(request, name) for name in names
        }
        return found | {"top_k": min(found["top_k"], self.config.llm.vocab_size)}

    def semantic_count(self, request: Request, prompt: Prompt, room: int, pieces: int, said: int) -> int:
        """Returns the most semantic tokens that the request allows for a piece and that there is room for.

        Args:
          request: what was asked for.
          prompt: of the piece.
          room: see `Engine.room`.
          pieces: of the whole text.
          said: semantic tokens of the pieces before.

        Raises:
          SparkError: there is no room for speech, or for as much as was asked for.
        """
        if room < 1:
            raise SparkError(
                f"the prompt has {len(prompt.ids)} tokens and leaves no room for speech: give less text, or "
                "a shorter reference where it comes with a transcript"
            )
        if request.max_seconds is None:
            return room
        count = self.most_tokens(request.max_seconds) - said
        if pieces > 1:
            return min(count, room)
        if count > room:
            most = self.seconds(room)
            raise SparkError(f"max_seconds is {request.max_seconds:g}, expected at most {most:g} here")
        return count

    def most_tokens(self, seconds: float) -> int:
        """Returns the semantic tokens of so much speech, rounded up."""
        return math.ceil(seconds * self.config.sample_rate / self.config.latent_hop_length)

    def seconds(self, tokens: int) -> float:
        """Returns how long so many semantic tokens last."""
        return tokens * self.config.latent_hop_length / self.config.sample_rate


def _levels(request: Request) -> tuple[int, int]:
    """Returns pitch and speed level of a made-up voice: as asked, of the values asked for, or moderate."""
    if request.pitch_hz is not None:
        pitch_level = attributes.pitch_level(request.pitch_hz, request.gender)
        return pitch_level, attributes.speed_level(request.syllables_per_second, language_of(request.text))
    return attributes.level_id(request.pitch or "moderate"), attributes.level_id(request.speed or "moderate")
