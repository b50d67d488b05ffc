"""Text to speech from a model directory: the tokenizer, the decoder LLM and BiCodec put together."""

import dataclasses
import math
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from spark_jax.audio.load import check_reference, load_audio
from spark_jax.audio.normalize import reference_clip, volume_normalize
from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.inference import codec
from spark_jax.inference.generate import Generator
from spark_jax.inference.request import Request
from spark_jax.inference.sampling import Greedy, Sampling
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.voice import Voice, check_ids
from spark_jax.qwen2.model import Qwen2
from spark_jax.shared import compilation_cache
from spark_jax.text import attributes
from spark_jax.text.prompt import Prompt, cloning_prompt, creation_prompt
from spark_jax.text.tokenizer import SparkTokenizer
from spark_jax.wav2vec2.model import num_frames, num_samples

EMBEDDED_VOICE = Path(__file__).parents[1] / "voices" / "tiny-en"
MAX_TOKENS = 3000  # of one utterance, the release's limit: 60 s


@dataclasses.dataclass(frozen=True, eq=False)
class Audio:
    """Speech, and the tokens that it was made from."""

    samples: Float[np.ndarray, " time"]
    sample_rate: int  # Hz
    semantic_ids: Int[np.ndarray, " tokens"]
    global_ids: Int[np.ndarray, " global"]
    reached_limit: bool  # cut off at the longest length allowed: the model had not come to an end


class SparkTTS:
    """A loaded text-to-speech model."""

    def __init__(self, model: model_directory.LoadedModel):
        """See `load`."""
        self.config: SparkConfig = model.config
        self._variables = model.variables
        self._default_voice = model.default_voice
        if "llm" in model.variables:
            self.tokenizer = SparkTokenizer.load(model.tokenizer_directory)
            self._generator = Generator(
                Qwen2(self.config.llm),
                model.variables["llm"]["params"],
                self.tokenizer,
                self.config.bicodec.speaker_encoder.token_num,
            )
        # The codec's two compiled programs, one per bucket of lengths.
        self._tokenize = jax.jit(partial(codec.tokenize, config=self.config))
        self._detokenize = jax.jit(partial(codec.detokenize, config=self.config))

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str] | None = None, parts: Sequence[str] = model_directory.PARTS
    ) -> "SparkTTS":
        """Loads a model directory; None: the embedded voice. Turns the persistent compilation cache on.

        Args:
          directory: the model directory.
          parts: what is loaded. `decode` needs "bicodec", `encode` and `voice` "wav2vec2" too; without the "llm", the
            largest part, they load faster and take less memory.

        Raises:
          SparkError: something is wrong with the directory; see `model_directory.load`.
        """
        compilation_cache.enable()
        return cls(model_directory.load(EMBEDDED_VOICE if directory is None else directory, parts=parts))

    def synthesize(self, text: str, voice: Voice | str | os.PathLike[str] | None = None, **options: Any) -> Audio:
        """Speaks a text.

        Args:
          text: what is said.
          voice: a voice, or the path of a voice file.
          **options: further fields of `Request`: reference, transcript, gender, pitch, speed, pitch_hz,
            syllables_per_second, seed, temperature, top_k, top_p, greedy, max_seconds.

        Warns:
          UserWarning: the speech was cut off at `max_seconds`; `Audio.reached_limit` says so, too.

        Raises:
          SparkError: bad options, or a voice, reference or text that cannot be used.
        """
        return self.speak(Request(text=text, voice=voice, **options))

    def speak(self, request: Request) -> Audio:
        """Answers one request; as `synthesize`."""
        self._need("llm", "bicodec")
        prompt = self._prompt(request)
        count = self._semantic_count(request, prompt)
        own = self.config.sampling
        sampling = Sampling(
            temperature=own.temperature if request.temperature is None else request.temperature,
            top_p=own.top_p if request.top_p is None else request.top_p,
            top_k=own.top_k if request.top_k is None else request.top_k,
        )
        [generation] = self._generator.generate(
            [prompt],
            [request.seed],
            Greedy() if request.greedy else sampling,
            self._generator.new_tokens(prompt, count),
        )
        if generation.reached_limit:
            warnings.warn(f"the speech has no end: cut off after {self._seconds(count):g} s", stacklevel=3)
        # Where no <|im_end|> came, its place holds one token more than the limit.
        semantic_ids = generation.semantic_ids[:count]
        return Audio(
            samples=self.decode(generation.global_ids, semantic_ids),
            sample_rate=self.config.sample_rate,
            semantic_ids=semantic_ids,
            global_ids=generation.global_ids,
            reached_limit=generation.reached_limit,
        )

    def voice(self, reference: str | os.PathLike[str], transcript: str | None = None) -> Voice:
        """The voice of a recording: its tokens, and what it says where that is given.

        Any sample rate and any format that libsndfile reads; of several channels the first counts.

        Raises:
          SparkError: the file is missing, not audio, shorter than 0.1 s, silent or not finite.
        """
        samples = load_audio(reference, self.config.sample_rate)
        global_ids, semantic_ids = self._encode(samples, os.fspath(reference))
        return Voice(global_ids, semantic_ids, transcript)

    def encode(
        self, samples: Float[np.ndarray, " time"]
    ) -> tuple[Int[np.ndarray, " global"], Int[np.ndarray, " tokens"]]:
        """Speech → global ids and semantic ids (int32), as the reference computes them.

        There is one semantic id per whole frame of the feature extractor: (n - 400)//320 + 1 for n samples at
        the release's sizes. The last 80 to 399 samples make no token of their own.

        Args:
          samples: at the model's sample rate, of any loudness: the volume is normalized.

        Raises:
          SparkError: not one-dimensional floats, shorter than 0.1 s, silent or not finite.
        """
        samples = np.asarray(samples)
        if not np.issubdtype(samples.dtype, np.floating):
            raise SparkError(f"samples: type {samples.dtype}, expected floating-point amplitudes in -1 to 1")
        return self._encode(samples.astype(np.float64), "samples")

    def decode(
        self, global_ids: Int[np.ndarray, " global"], semantic_ids: Int[np.ndarray, " tokens"]
    ) -> Float[np.ndarray, " time"]:
        """Tokens → float32 samples: `latent_hop_length` (320) for each semantic id.

        Raises:
          SparkError: ids that do not fit the model; see `voice.check_ids`.
        """
        self._need("bicodec")
        global_ids, semantic_ids = check_ids(global_ids, semantic_ids, self.config)
        count = len(semantic_ids)
        padded = np.zeros((1, _bucket(count)), np.int32)
        padded[0, :count] = semantic_ids
        mask = np.arange(padded.shape[1])[None] < count
        samples = self._detokenize(self._variables["bicodec"], padded, global_ids[None], mask)
        return np.asarray(samples[0])[: count * self.config.latent_hop_length]

    def _need(self, *parts: str) -> None:
        if missing := [part for part in parts if part not in self._variables]:
            raise SparkError(f"this needs {' and '.join(missing)}, loaded are only {', '.join(self._variables)}")

    def _encode(self, samples, source: str):
        self._need("wav2vec2", "bicodec")
        check_reference(samples, source, self.config.sample_rate)
        if self.config.volume_normalize:
            samples = volume_normalize(samples)
        clip = reference_clip(samples, self.config.ref_segment_samples)
        count = codec.num_tokens(len(samples), self.config)
        bucket = _bucket(num_frames(len(samples), self.config.wav2vec2))
        padded = np.zeros((1, num_samples(bucket, self.config.wav2vec2)), np.float32)
        padded[0, : len(samples)] = samples
        semantic_ids, global_ids = self._tokenize(
            self._variables["wav2vec2"],
            self._variables["bicodec"],
            padded,
            np.array([len(samples)]),
            clip[None].astype(np.float32),
        )
        return np.asarray(global_ids[0]), np.asarray(semantic_ids[0])[:count]

    def _prompt(self, request: Request) -> Prompt:
        values = {}
        if request.pitch_hz is not None:
            values["pitch_value"] = attributes.pitch_value(request.pitch_hz)
            values["speed_value"] = attributes.speed_value(request.syllables_per_second)
        if request.gender is not None:
            pitch_level, speed_level = _levels(request)
            return creation_prompt(
                self.tokenizer,
                request.text,
                attributes.gender_id(request.gender),
                pitch_level,
                speed_level,
                **values,
            )
        voice = self._voice(request)
        semantic_ids = None if voice.transcript is None else voice.semantic_ids
        return cloning_prompt(self.tokenizer, request.text, voice.global_ids, voice.transcript, semantic_ids, **values)

    def _voice(self, request: Request) -> Voice:
        if request.reference is not None:
            return self.voice(request.reference, request.transcript)
        voice = self._default_voice if request.voice is None else request.voice
        if voice is None:
            raise SparkError("the model has no default voice: give a voice, a reference or a gender")
        if isinstance(voice, Voice):
            check_ids(voice.global_ids, voice.semantic_ids, self.config, "voice")
            return voice
        return Voice.load(voice, self.config)

    def _semantic_count(self, request: Request, prompt: Prompt) -> int:
        """The most semantic tokens that the request allows and the model has room for."""
        room = self._generator.room(prompt)
        if room < 1:
            raise SparkError(
                f"the prompt has {len(prompt.ids)} tokens and leaves no room for speech: give less text, or "
                "a shorter reference where it comes with a transcript"
            )
        if request.max_seconds is None:
            return min(MAX_TOKENS, room)
        count = math.ceil(request.max_seconds * self.config.sample_rate / self.config.latent_hop_length)
        if count > room:
            most = self._seconds(room)
            raise SparkError(f"max_seconds is {request.max_seconds:g}, expected at most {most:g} here")
        return count

    def _seconds(self, tokens: int) -> float:
        return tokens * self.config.latent_hop_length / self.config.sample_rate


def _levels(request: Request) -> tuple[int, int]:
    """Pitch and speed level of a made-up voice: as asked, of the values asked for, or moderate."""
    if request.pitch_hz is not None:
        language = "zh" if any("\u4e00" <= character <= "\u9fff" for character in request.text) else "en"
        pitch_level = attributes.pitch_level(request.pitch_hz, request.gender)
        return pitch_level, attributes.speed_level(request.syllables_per_second, language)
    return attributes.level_id(request.pitch or "moderate"), attributes.level_id(request.speed or "moderate")


def _bucket(count: int) -> int:
    """Smallest of 64, 96, 128, 192, 256, 384 … not below `count`: few programs, little padding."""
    power = 64
    while power * 3 // 2 < count:
        power *= 2
    return power if count <= power else power * 3 // 2
