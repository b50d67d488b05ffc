"""Text to speech from a model directory: the tokenizer, the decoder LLM and the codec put together."""

import dataclasses
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
from spark_jax.inference.audio import Audio, Speech
from spark_jax.inference.batch import Pieces
from spark_jax.inference.checks import Finding, check_speech
from spark_jax.inference.codec import EMBEDDED_VOICE, Codec
from spark_jax.inference.controls import ignored_options
from spark_jax.inference.engine import MAX_PROMPT_TOKENS, PROMPT_ROOM, Engine, EngineSettings, Job, capacity_of
from spark_jax.inference.long_text import Plan, join_pieces, piece_seed, plan_pieces
from spark_jax.inference.request import Request
from spark_jax.inference.speech_engine import VOCODED_TOGETHER, SpeechEngine, SpeechJob
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.voice import Voice, check_ids
from spark_jax.qwen2.model import Qwen2
from spark_jax.shared import compilation_cache
from spark_jax.text import attributes
from spark_jax.text.language import language_of
from spark_jax.text.prompt import Prompt, cloning_prompt, creation_prompt
from spark_jax.text.reading import read_text, read_transcript
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
            self._llm_params = llm["params"]
            self._engine_settings = engine
            self._of_one: dict[int, SpeechEngine] = {}  # by their largest top-k

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
          engine: sizes of what `synthesize_batch` runs on; memory for its slots is taken when it is first used. `speak`
            has one slot.

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
            syllables_per_second, seed, temperature, top_k, top_p, greedy, max_seconds, normalize.

        Warns:
          UserWarning: something is wrong with the speech: it was cut off, as `Audio.reached_limit` says, too, or one of
            `Audio.checks`; the model cannot do what is asked for (characters that it does not know, a control that
            changes nothing); or the reference holds no voice, or not in its first channel.

        Raises:
          SparkError: bad options, or a voice, reference or text that cannot be used.
        """
        return self.speak(Request(text=text, voice=voice, **options))

    def speak(self, request: Request) -> Audio:
        """Answers one request; as `synthesize`."""
        placement.require(self._variables, "llm", "bicodec")
        engine = self._engine_of_one(request)
        pieces = self._pieces(request, engine)
        speech: list[Speech] | None = None
        while True:
            try:
                wanted = pieces.send(speech)
            except StopIteration as end:
                audio = end.value
                break
            speech = engine.speak(wanted)
        if audio.reached_limit:
            count = len(self.plan(request)[0].pieces)
            warnings.warn(self._cut_off(request, count, len(audio.semantic_ids)), stacklevel=3)
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
        return batch.speak_all(self._speech_engine, self._batch_pieces, requests, progress)

    def synthesize_batch_async(self, requests: Iterable[Request]) -> AsyncIterator[tuple[int, Audio | SparkError]]:
        """Yields what `synthesize_batch` does while the event loop goes on: `async for number, audio in …`.

        Several of them, and `synthesize_batch` in other threads, share the engine.

        Raises:
          SparkError: as `synthesize_batch`.
        """
        return batch.speak_all_async(self._speech_engine, self._batch_pieces, requests)

    def plan(self, request: Request) -> tuple[Plan, list[str]]:
        """Returns the pieces in which a request's text is spoken, and what the model cannot do of what it asks for.

        Raises:
          SparkError: there is nothing to say.
        """
        reading = read_text(request.text, self.config.text, request.normalize)
        return plan_pieces(reading, self.config), [*ignored_options(request, self.config.text), *reading.warnings]

    def voice(self, reference: str | os.PathLike[str], transcript: str | None = None) -> Voice:
        """Returns the voice of a recording; see `Codec.voice`."""
        return self.codec.voice(reference, transcript)

    def encode(self, samples: np.ndarray) -> tuple[Int[np.ndarray, " global"], Int[np.ndarray, " tokens"]]:
        """Returns global ids and semantic ids of one recording [time], which is checked; see `Codec.encode`."""
        return self.codec.encode([samples], ["samples"])[0]

    def decode(self, global_ids: Any, semantic_ids: Any) -> Float[np.ndarray, " time"]:
        """Returns the speech of one item's ids, flat arrays or lists, which are checked; see `Codec.decode`."""
        return self.codec.decode([(global_ids, semantic_ids)], [None])[0]

    @functools.cached_property
    def _speech_engine(self) -> SpeechEngine:
        """Returns what speaks batches; the model's own top-k is always possible."""
        most = max(self._engine_settings.max_top_k, min(self.config.sampling.top_k, self.config.llm.vocab_size))
        return self._make_engine(dataclasses.replace(self._engine_settings, max_top_k=most), VOCODED_TOGETHER)

    def _engine_of_one(self, request: Request) -> SpeechEngine:
        """Returns what speaks one request with the least delay: with one slot on each device, and any top-k."""
        most = max(self._engine_settings.max_top_k, self._sampling(request)["top_k"])
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
        placement.require(self._variables, "llm", "bicodec")
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

    def _batch_pieces(self, request: Request) -> Pieces:
        return self._pieces(request, self._speech_engine)

    def _sampling(self, request: Request) -> dict[str, Any]:
        """Returns the sampling values of a request: its own, or the model's."""
        model = self.config.sampling
        names = ("temperature", "top_k", "top_p")
        values = {
            name: getattr(model, name) if getattr(request, name) is None else getattr(request, name) for name in names
        }
        return values | {"top_k": min(values["top_k"], self.config.llm.vocab_size)}

    def _pieces(self, request: Request, engine: SpeechEngine) -> Pieces:
        """Yields jobs of the pieces of a request's text, takes their speech, and returns the whole.

        All pieces come at once, but where one needs what is spoken before it: the voice that was made up, or how much
        is left of `max_seconds`.
        """
        plan, messages = self.plan(request)
        for message in messages:
            warnings.warn(message, stacklevel=4)
        voice = None if request.gender is not None else self._voice(request)
        sampling = self._sampling(request)
        spoken: list[Speech] = []
        while len(spoken) < len(plan.pieces):
            jobs, said = [], sum(len(speech.semantic_ids) for speech in spoken)
            one = voice is None or request.max_seconds is not None
            for number in range(len(spoken), len(spoken) + 1 if one else len(plan.pieces)):
                prompt = self._prompt(request, plan.pieces[number].text, voice)
                count = self._semantic_count(request, prompt, engine.room(prompt), len(plan.pieces), said)
                limit, seed = engine.new_tokens(prompt, count), piece_seed(request.seed, number)
                jobs.append(SpeechJob(Job(prompt, limit, seed, greedy=request.greedy, **sampling), count))
            if jobs[0].most < 1:  # nothing is left of `max_seconds`
                break
            spoken += yield jobs
            if voice is None:  # made up for the first piece, it speaks the others
                voice = Voice(spoken[0].global_ids, np.zeros(0, np.int32))
        whole, spans = join_pieces(plan, [speech.samples for speech in spoken], self.config.sample_rate)
        semantic_ids = np.concatenate([speech.semantic_ids for speech in spoken])
        cut_off = len(spoken) < len(plan.pieces) or any(speech.reached_limit for speech in spoken)
        checks = tuple(
            finding
            for piece, speech in zip(plan.pieces, spoken, strict=False)
            for finding in self._checks(request, piece.text, speech)
        )
        return Audio(whole, self.config.sample_rate, semantic_ids, voice.global_ids, cut_off, spans, checks)

    def _checks(self, request: Request, text: str, speech: Speech) -> tuple[Finding, ...]:
        return check_speech(
            text,
            speech.samples,
            self.config.sample_rate,
            speech.semantic_ids,
            reached_limit=speech.reached_limit,
            syllables_per_second=request.syllables_per_second,
        )

    def _prompt(self, request: Request, text: str, voice: Voice | None) -> Prompt:
        """Returns the prompt of a piece; without a voice one is made up."""
        values = {}
        if request.pitch_hz is not None:
            values["pitch_value"] = attributes.pitch_value(request.pitch_hz)
            values["speed_value"] = attributes.speed_value(request.syllables_per_second)
        if voice is None:
            pitch_level, speed_level = _levels(request)
            return creation_prompt(
                self.tokenizer,
                text,
                attributes.gender_id(request.gender),
                pitch_level,
                speed_level,
                **values,
            )
        if voice.transcript is None:
            return cloning_prompt(self.tokenizer, text, voice.global_ids, **values)
        transcript = read_transcript(voice.transcript, self.config.text, request.normalize)
        return cloning_prompt(self.tokenizer, text, voice.global_ids, transcript, voice.semantic_ids, **values)

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

    def _semantic_count(self, request: Request, prompt: Prompt, room: int, pieces: int, said: int) -> int:
        """Returns the most semantic tokens that the request allows for a piece and that there is room for.

        Args:
          request: what was asked for.
          prompt: of the piece.
          room: see `Engine.room`.
          pieces: of the whole text.
          said: semantic tokens of the pieces before.
        """
        if room < 1:
            raise SparkError(
                f"the prompt has {len(prompt.ids)} tokens and leaves no room for speech: give less text, or "
                "a shorter reference where it comes with a transcript"
            )
        if request.max_seconds is None:
            return room
        count = self._most_tokens(request.max_seconds) - said
        if pieces > 1:
            return min(count, room)
        if count > room:
            most = self._seconds(room)
            raise SparkError(f"max_seconds is {request.max_seconds:g}, expected at most {most:g} here")
        return count

    def _cut_off(self, request: Request, pieces: int, said: int) -> str:
        """Returns the warning of a speech that has no end, or of a text that has no room in the time allowed."""
        if pieces > 1 and request.max_seconds is not None and said >= self._most_tokens(request.max_seconds):
            return f"the text is longer than max_seconds: cut off after {self._seconds(said):g} s of speech"
        if pieces > 1:
            return "the speech of a piece of the text has no end: cut off at the longest that the model allows"
        return f"the speech has no end: cut off after {self._seconds(said):g} s"

    def _most_tokens(self, seconds: float) -> int:
        return math.ceil(seconds * self.config.sample_rate / self.config.latent_hop_length)

    def _seconds(self, tokens: int) -> float:
        return tokens * self.config.latent_hop_length / self.config.sample_rate


def _levels(request: Request) -> tuple[int, int]:
    """Returns pitch and speed level of a made-up voice: as asked, of the values asked for, or moderate."""
    if request.pitch_hz is not None:
        pitch_level = attributes.pitch_level(request.pitch_hz, request.gender)
        return pitch_level, attributes.speed_level(request.syllables_per_second, language_of(request.text))
    return attributes.level_id(request.pitch or "moderate"), attributes.level_id(request.speed or "moderate")
