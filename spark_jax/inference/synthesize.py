"""Text to speech from a model directory: the tokenizer, the decoder LLM and the codec put together."""

import dataclasses
import functools
import os
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.inference import batch, placement
from spark_jax.inference.audio import Audio
from spark_jax.inference.codec import EMBEDDED_VOICE, Codec
from spark_jax.inference.controls import ignored_reference
from spark_jax.inference.engine import MAX_PROMPT_TOKENS, PROMPT_ROOM, Engine, EngineSettings, capacity_of
from spark_jax.inference.long_text import Plan
from spark_jax.inference.parts import StreamSettings, check_latency
from spark_jax.inference.prompts import Prompter
from spark_jax.inference.request import Request
from spark_jax.inference.speech_engine import VOCODED_TOGETHER, SpeechEngine
from spark_jax.inference.spoken_text import SpokenText, plan_request
from spark_jax.inference.stream import AsyncSpeechStream, Speaking, SpeechStream
from spark_jax.inference.stream_vocoder import StreamVocoder
from spark_jax.inference.word_times import WordAligner
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.parameters import RECOGNIZER
from spark_jax.model_directory.voice import Voice
from spark_jax.qwen2.model import Qwen2
from spark_jax.shared import compilation_cache
from spark_jax.text.tokenizer import SparkTokenizer
from spark_jax.text.vocabulary import Speller


class SparkTTS:
    """A loaded text-to-speech model: a codec, and a generator of its tokens.

    Attributes:
      config: the model's sizes.
      codec: for lists of recordings and of tokens.
      tokenizer: the LLM's; only where that is loaded.
      default_voice: file of the voice that speaks where a request names none; None: the model has none.
    """

    def __init__(
        self,
        model: model_directory.LoadedModel,
        *,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        engine: EngineSettings = EngineSettings(),  # noqa: B008 (frozen)
        stream: StreamSettings = StreamSettings(),  # noqa: B008 (frozen)
    ):
        """See `load`."""
        self.config: SparkConfig = model.config
        self._variables = model.variables
        self.default_voice = model.default_voice
        self._recognizer_directory = model.recognizer_directory
        self.codec = Codec(model.config, model.variables, dtype=dtype, mesh=mesh)
        if "llm" in model.variables:
            self.tokenizer = SparkTokenizer.load(model.tokenizer_directory)
            llm = placement.place({"llm": model.variables["llm"]}, self.config, self.codec.mesh)["llm"]
            self._llm = Qwen2(self.config.llm, jnp.dtype(dtype))
            self._llm_params = llm["params"]
            self._engine_settings, self._stream_settings = engine, stream
            self._of_one: dict[int, SpeechEngine] = {}  # by their largest top-k
            self._prompter = Prompter(self.codec, self.tokenizer, model.default_voice)

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
        stream: StreamSettings = StreamSettings(),  # noqa: B008 (frozen)
    ) -> "SparkTTS":
        """Loads a model; None: the embedded voice. Turns the persistent compilation cache on.

        Args:
          directory: a model directory or a run.
          base: where the parts come from that `directory` lacks: `SparkTTS.load("runs/llm", base="model")`.
          parts: what is loaded. Without "wav2vec2" only voices with a transcript and `encode` are missing; without the
            "llm", the largest part, there is the codec alone: see `Codec.load`. With a "recognizer", which not every
            model has, there is an `aligner`.
          dtype: of the LLM's weight matrices, its computation and the vocoder's; norms, softmax, sampling and `encode`
            are in float32 always.
          mesh: devices of this process, which divide batches and parameters by the table of `spark_jax.sharding`; None:
            the default device.
          engine: sizes of what `synthesize_batch` and `stream` run on; memory for its slots is taken when it is first
            used. `speak` has one slot.
          stream: sizes of the parts of a stream.

        Raises:
          SparkError: something is wrong with the directory, or the mesh does not divide the model; see
            `model_directory.load`.
        """
        compilation_cache.enable()
        mesh = placement.mesh_or_device(mesh)
        directory = EMBEDDED_VOICE if directory is None else directory
        model = model_directory.load(directory, parts=parts, base=base, llm_dtype=dtype, mesh=mesh)
        return cls(model, dtype=dtype, mesh=mesh, engine=engine, stream=stream)

    def synthesize(self, text: str, voice: Voice | str | os.PathLike[str] | None = None, **options: Any) -> Audio:
        """Speaks a text.

        Args:
          text: what is said.
          voice: a voice, or the path of a voice file.
          **options: further fields of `Request`: reference, transcript, gender, pitch, speed, pitch_hz,
            syllables_per_second, seed, temperature, top_k, top_p, greedy, max_seconds, normalize, retries.

        Warns:
          UserWarning: something is wrong with the speech, in the best of all tries: it was cut off, as
            `Audio.reached_limit` says, too, or one of `Audio.checks`; the model cannot do what is asked for (characters
            that it does not know, a control that changes nothing); or the reference holds no voice, or not in its first
            channel.

        Raises:
          SparkError: bad options, or a voice, reference or text that cannot be used.
        """
        return self.speak(Request(text=text, voice=voice, **options))

    def speak(self, request: Request) -> Audio:
        """Answers one request; as `synthesize`."""
        placement.require(self._variables, "llm", "bicodec")
        engine = self._engine_of_one(request)
        text, spoken = SpokenText(request, self._prompter, engine), []
        while (found := text.next_job()) is not None:
            [speech] = engine.speak([found[1]])
            if (piece := text.take(found[0], speech)) is not None:
                spoken.append(piece)
        audio = text.audio(spoken)
        if audio.reached_limit:
            message = self._cut_off(request, len(text.plan.pieces), len(audio.semantic_ids))
            warnings.warn(message, stacklevel=3)
        for finding in audio.checks:
            if finding.name != "no_end":  # it was cut off: told already
                wrong = request.transcript is not None and finding.name in ("silent", "too_short")
                hint = "; does the reference say what its transcript says?" if wrong else ""
                warnings.warn(finding.message + hint, stacklevel=3)
        return audio

    def synthesize_batch(
        self, requests: Iterable[Request], *, progress: bool = False
    ) -> Iterator[tuple[int, Audio | SparkError]]:
        """Speaks any number of requests together: yields the number of each and its speech when it is finished.

        A request that cannot be spoken has the error that `speak` would raise in the place of its speech; the others go
        on. What a request gets depends on itself and on the engine's settings, not on the others. `reached_limit` and
        `checks` of the audio say what is wrong with it. Leaving the loop drops what is not finished.

        Args:
          requests: any iterable; it is read as the engine has room.
          progress: shows a bar with the seconds of audio a second.

        Warns:
          UserWarning: the model cannot do what a request asks for; see `synthesize`.

        Raises:
          SparkError: a part of the model is not loaded.
        """
        return batch.speak_all(self._speech_engine, self._text, requests, progress)

    def synthesize_batch_async(self, requests: Iterable[Request]) -> AsyncIterator[tuple[int, Audio | SparkError]]:
        """Yields what `synthesize_batch` does while the event loop goes on: `async for number, audio in …`.

        Several of them, and `synthesize_batch` in other threads, share the engine.

        Raises:
          SparkError: as `synthesize_batch`.
        """
        return batch.speak_all_async(self._speech_engine, self._text, requests)

    def stream(self, request: Request, latency: str = "exact") -> SpeechStream:
        """Returns an iterator over the speech of a request, which is given out while it is made.

        Nothing begins before the first chunk is asked for. Any number of streams, in one thread or in many, and batches
        share the engine. Leaving it (`with`, `close`) frees its slot.

        Args:
          request: what is said.
          latency: "exact": the chunks joined are the speech that `synthesize_batch` gives, within 1e-5; "low": the
            first comes earlier, and they are nearly so: see `StreamSettings.look_ahead`.

        Warns:
          UserWarning: the model cannot do what the request asks for; see `synthesize`.

        Raises:
          SparkError: the latency is unknown or a part of the model is not loaded; from the iterator, the request cannot
            be spoken.
        """
        return SpeechStream(self._speaking(request, latency))

    def stream_async(self, request: Request, latency: str = "exact") -> AsyncSpeechStream:
        """Returns what `stream` does for `async for`; leave it by `async with` or `aclose`.

        Raises:
          SparkError: as `stream`.
        """
        return AsyncSpeechStream(lambda wake: self._speaking(request, latency, wake))

    def warmup(self) -> None:
        """Compiles what `synthesize_batch` and `stream` run, but the batches of the former's vocoder."""
        self._speech_engine.warmup()
        self._stream_vocoder.warmup()

    def plan(self, request: Request) -> tuple[Plan, list[str]]:
        """Returns the pieces in which a request's text is spoken, and what the model cannot do of what it asks for.

        Raises:
          SparkError: there is nothing to say.
        """
        return plan_request(request, self.config)

    def voice(self, reference: str | os.PathLike[str], transcript: str | None = None) -> Voice:
        """Returns the voice of a recording; see `Codec.voice`.

        Warns:
          UserWarning: as there; or the model knows one speaker only, and the voice will change nothing.
        """
        for message in ignored_reference(os.fspath(reference), self.config.text):
            warnings.warn(message, stacklevel=2)
        return self.codec.voice(reference, transcript)

    def encode(self, samples: np.ndarray) -> tuple[Int[np.ndarray, " global"], Int[np.ndarray, " tokens"]]:
        """Returns global ids and semantic ids of one recording [time], which is checked; see `Codec.encode`."""
        return self.codec.encode([samples], ["samples"])[0]

    def decode(self, global_ids: Any, semantic_ids: Any) -> Float[np.ndarray, " time"]:
        """Returns the speech of one item's ids, flat arrays or lists, which are checked; see `Codec.decode`."""
        return self.codec.decode([(global_ids, semantic_ids)], [None])[0]

    @functools.cached_property
    def aligner(self) -> WordAligner:
        """Returns what finds when each word of a speech is heard: `tts.aligner.align(audio).spans[0].words`.

        Raises:
          SparkError: the part "recognizer" is not loaded, or its files are damaged.
        """
        placement.require(self._variables, RECOGNIZER)
        speller = Speller.load(self._recognizer_directory)
        return WordAligner(self.config, self._variables[RECOGNIZER], speller, self.codec.mesh)

    @property
    def engine(self) -> SpeechEngine:
        """Returns what speaks batches and streams."""
        return self._speech_engine

    @functools.cached_property
    def _speech_engine(self) -> SpeechEngine:
        """Returns what speaks batches and streams; the model's own top-k is always possible."""
        placement.require(self._variables, "llm", "bicodec")
        most = max(self._engine_settings.max_top_k, min(self.config.sampling.top_k, self.config.llm.vocab_size))
        return self._make_engine(dataclasses.replace(self._engine_settings, max_top_k=most), VOCODED_TOGETHER)

    def _engine_of_one(self, request: Request) -> SpeechEngine:
        """Returns what speaks one request with the least delay: with one slot on each device, and any top-k."""
        most = max(self._engine_settings.max_top_k, self._prompter.sampling(request)["top_k"])
        most = 1 << (most - 1).bit_length()  # few programs
        if most not in self._of_one:
            own, context = self._engine_settings, self.config.llm.max_position_embeddings
            longest = min(context, MAX_PROMPT_TOKENS + PROMPT_ROOM + self.config.max_semantic_tokens)
            settings = dataclasses.replace(
                own,
                slots=placement.row_shards(self.codec.mesh),
                capacity=capacity_of(longest, own.block),
                max_top_k=most,
            )
            self._of_one[most] = self._make_engine(settings, vocoded_together=1)
        return self._of_one[most]

    def _make_engine(self, settings: EngineSettings, vocoded_together: int) -> SpeechEngine:
        engine = Engine(
            self._llm,
            self._llm_params,
            self.tokenizer,
            self.config.bicodec.speaker_encoder.token_num,
            max_semantic_tokens=self.config.max_semantic_tokens,
            settings=settings,
            mesh=self.codec.mesh,
        )
        return SpeechEngine(engine, self.codec, vocoded_together)

    @functools.cached_property
    def _stream_vocoder(self) -> StreamVocoder:
        return StreamVocoder(self.codec, self._stream_settings)

    def _speaking(self, request: Request, latency: str, wake: Callable[[], Any] | None = None) -> Speaking:
        check_latency(latency)
        text, vocoder = self._text(request), self._stream_vocoder
        return Speaking(text, self._speech_engine, vocoder, self.config.sample_rate, latency, wake)

    def _text(self, request: Request) -> SpokenText:
        return SpokenText(request, self._prompter, self._speech_engine)

    def _cut_off(self, request: Request, pieces: int, said: int) -> str:
        """Returns the warning of a speech that has no end, or of a text that has no room in the time allowed."""
        if pieces > 1 and request.max_seconds is not None and said >= self._prompter.most_tokens(request.max_seconds):
            return f"the text is longer than max_seconds: cut off after {self._prompter.seconds(said):g} s of speech"
        if pieces > 1:
            return "the speech of a piece of the text has no end: cut off at the longest that the model allows"
        return f"the speech has no end: cut off after {self._prompter.seconds(said):g} s"
