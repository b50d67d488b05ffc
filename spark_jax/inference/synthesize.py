"""Text to speech from a model directory: the tokenizer, the decoder LLM and the codec put together."""

import functools
import math
import os
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.inference import batch, placement
from spark_jax.inference.codec import EMBEDDED_VOICE, Codec
from spark_jax.inference.engine import Engine, EngineSettings, Job
from spark_jax.inference.generate import Generator
from spark_jax.inference.request import Request
from spark_jax.inference.sampling import Greedy, Sampling
from spark_jax.inference.speech_engine import Audio, SpeechEngine, SpeechJob
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.voice import Voice, check_ids
from spark_jax.qwen2.model import Qwen2
from spark_jax.shared import compilation_cache
from spark_jax.text import attributes
from spark_jax.text.prompt import Prompt, cloning_prompt, creation_prompt
from spark_jax.text.tokenizer import SparkTokenizer


class SparkTTS:
    """A loaded text-to-speech model: a codec, and a generator of its tokens.

    Attributes:
      config: the model's sizes.
      codec: for lists of recordings and of tokens.
      tokenizer: the LLM's; only where that is loaded.
    """

    def __init__(
        self,
        model: model_directory.LoadedModel,
        *,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        engine: EngineSettings = EngineSettings(),  # noqa: B008 (frozen)
    ):
        """See `load`."""
        self.config: SparkConfig = model.config
        self._variables = model.variables
        self._default_voice = model.default_voice
        self.codec = Codec(model.config, model.variables, dtype=dtype, mesh=mesh)
        if "llm" in model.variables:
            self.tokenizer = SparkTokenizer.load(model.tokenizer_directory)
            llm = placement.place({"llm": model.variables["llm"]}, self.config, self.codec.mesh)["llm"]
            self._llm = Qwen2(self.config.llm, jnp.dtype(dtype))
            self._engine_settings = engine
            self._generator = Generator(
                self._llm,
                llm["params"],
                self.tokenizer,
                self.config.bicodec.speaker_encoder.token_num,
                max_semantic_tokens=self.config.max_semantic_tokens,
                mesh=self.codec.mesh,
            )

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str] | None = None,
        parts: Sequence[str] = model_directory.PARTS,
        *,
        base: str | os.PathLike[str] | None = None,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        engine: EngineSettings = EngineSettings(),  # noqa: B008 (frozen)
    ) -> "SparkTTS":
        """Loads a model; None: the embedded voice. Turns the persistent compilation cache on.

        Args:
          directory: a model directory or a run.
          base: where the parts come from that `directory` lacks: `SparkTTS.load("runs/llm", base="model")`.
          parts: what is loaded. Without "wav2vec2" only voices with a transcript and `encode` are missing; without the
            "llm", the largest part, there is the codec alone: see `Codec.load`.
          dtype: of the LLM's weight matrices, its computation and the vocoder's; norms, softmax, sampling and `encode`
            are in float32 always.
          mesh: devices of this process, which divide batches and parameters by the table of `spark_jax.sharding`; None:
            the default device.
          engine: sizes of what `synthesize_batch` runs on; memory for its slots is taken when it is first used.

        Raises:
          SparkError: something is wrong with the directory, or the mesh does not divide the model; see
            `model_directory.load`.
        """
        compilation_cache.enable()
        mesh = placement.mesh_or_device(mesh)
        directory = EMBEDDED_VOICE if directory is None else directory
        model = model_directory.load(directory, parts=parts, base=base, llm_dtype=dtype, mesh=mesh)
        return cls(model, dtype=dtype, mesh=mesh, engine=engine)

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
        placement.require(self._variables, "llm", "bicodec")
        prompt = self._prompt(request)
        count = self._semantic_count(request, prompt, self._generator.room(prompt))
        [generation] = self._generator.generate(
            [prompt],
            [request.seed],
            Greedy() if request.greedy else Sampling(**self._sampling(request)),
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

    def synthesize_batch(self, requests: Iterable[Request], *, progress: bool = False) -> Iterator[tuple[int, Audio]]:
        """Speaks any number of requests together: yields the number and the speech of each when it is finished.

        What a request gets depends on itself and on the engine's settings, not on the others. `Audio.reached_limit`
        says which are cut off. Leaving the loop drops what is not finished.

        Args:
          requests: any iterable; it is read as the engine has room.
          progress: shows a bar with the seconds of audio a second.

        Raises:
          SparkError: a request that cannot be spoken; the message begins with its number.
        """
        return batch.speak_all(self._speech_engine, self._job, requests, progress)

    def synthesize_batch_async(self, requests: Iterable[Request]) -> AsyncIterator[tuple[int, Audio]]:
        """Yields what `synthesize_batch` does while the event loop goes on: `async for number, audio in …`.

        Several of them, and `synthesize_batch` in other threads, share the engine.

        Raises:
          SparkError: as `synthesize_batch`.
        """
        return batch.speak_all_async(self._speech_engine, self._job, requests)

    def voice(self, reference: str | os.PathLike[str], transcript: str | None = None) -> Voice:
        """Returns the voice of a recording; see `Codec.voice`."""
        return self.codec.voice(reference, transcript)

    def encode(
        self, samples: Float[np.ndarray, " time"]
    ) -> tuple[Int[np.ndarray, " global"], Int[np.ndarray, " tokens"]]:
        """Returns global ids and semantic ids of one recording; see `Codec.encode`."""
        return self.codec.encode([samples], ["samples"])[0]

    def decode(
        self, global_ids: Int[np.ndarray, " global"], semantic_ids: Int[np.ndarray, " tokens"]
    ) -> Float[np.ndarray, " time"]:
        """Returns the speech of one item's tokens; see `Codec.decode`."""
        return self.codec.decode([(global_ids, semantic_ids)], [None])[0]

    @functools.cached_property
    def _engine(self) -> Engine:
        placement.require(self._variables, "llm", "bicodec")
        return Engine(
            self._llm,
            self._generator.params,
            self.tokenizer,
            self.config.bicodec.speaker_encoder.token_num,
            max_semantic_tokens=self.config.max_semantic_tokens,
            settings=self._engine_settings,
            mesh=self.codec.mesh,
        )

    @functools.cached_property
    def _speech_engine(self) -> SpeechEngine:
        return SpeechEngine(self._engine, self.codec)

    def _job(self, request: Request) -> SpeechJob:
        prompt = self._prompt(request)
        count = self._semantic_count(request, prompt, self._engine.room(prompt))
        limit = self._engine.new_tokens(prompt, count)
        job = Job(prompt, limit, request.seed, greedy=request.greedy, **self._sampling(request))
        return SpeechJob(job, count)

    def _sampling(self, request: Request) -> dict[str, Any]:
        """Returns temperature, top_k and top_p: the request's, or where it has none the model's own."""
        names = ("temperature", "top_k", "top_p")
        asked = {name: getattr(request, name) for name in names}
        return {name: getattr(self.config.sampling, name) if asked[name] is None else asked[name] for name in names}

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
            speech = voice.transcript is not None
            check_ids(voice.global_ids, voice.semantic_ids, self.config, "voice", speech)
            return voice
        return Voice.load(voice, self.config)

    def _semantic_count(self, request: Request, prompt: Prompt, room: int) -> int:
        """Returns the most semantic tokens that the request allows, of those that there is room for."""
        if room < 1:
            raise SparkError(
                f"the prompt has {len(prompt.ids)} tokens and leaves no room for speech: give less text, or "
                "a shorter reference where it comes with a transcript"
            )
        if request.max_seconds is None:
            return room
        count = math.ceil(request.max_seconds * self.config.sample_rate / self.config.latent_hop_length)
        if count > room:
            most = self._seconds(room)
            raise SparkError(f"max_seconds is {request.max_seconds:g}, expected at most {most:g} here")
        return count

    def _seconds(self, tokens: int) -> float:
        return tokens * self.config.latent_hop_length / self.config.sample_rate


def _levels(request: Request) -> tuple[int, int]:
    """Returns pitch and speed level of a made-up voice: as asked, of the values asked for, or moderate."""
    if request.pitch_hz is not None:
        language = "zh" if any("\u4e00" <= character <= "\u9fff" for character in request.text) else "en"
        pitch_level = attributes.pitch_level(request.pitch_hz, request.gender)
        return pitch_level, attributes.speed_level(request.syllables_per_second, language)
    return attributes.level_id(request.pitch or "moderate"), attributes.level_id(request.speed or "moderate")
