"""A model that speaks noise at once: what a server does with a model, without the time that a model takes."""

import asyncio
import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
from helpers.tiny_config import tiny

from spark_jax.audio.reference import load_reference
from spark_jax.inference.codec import Codec
from spark_jax.inference.long_text import Span, piece_seed
from spark_jax.inference.stream import AudioChunk
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.model_directory.voice import Voice
from spark_jax.text.tokenizer import build_tokenizer

_CHUNK = 8  # tokens


class FakeCodec(Codec):
    """Takes voices from recordings that it reads and checks, as a codec does."""

    def __init__(self):
        self.config = tiny()

    def voice(self, path, transcript=None):
        samples = load_reference(path, self.config.sample_rate, spoken=transcript is not None)
        self._checked(samples, str(path))
        speaker = self.config.bicodec.speaker_encoder
        draw = np.random.default_rng(list(hashlib.sha256(samples.tobytes()).digest()))
        ids = draw.integers(0, int(np.prod(speaker.fsq_levels)), speaker.token_num).astype(np.int32)
        return Voice(ids, np.arange(5 if transcript else 0, dtype=np.int32), transcript)


@dataclasses.dataclass
class FakeEngine:
    """Counts who speaks."""

    slots: int = 4
    running: int = 0

    @property
    def load(self) -> tuple[int, int]:
        return max(0, self.running - self.slots), min(self.running, self.slots)


class FakeTTS(SparkTTS):
    """Speaks noise that depends on text, voice and seed.

    Attributes:
      pace: seconds that a chunk takes.
      fail: what a text that holds its key raises in the middle.
    """

    def __init__(self, default_voice=None):
        self.config, self.codec = tiny(), FakeCodec()
        self.tokenizer = build_tokenizer("bytes", 64, 64)
        self.default_voice = default_voice
        self.fake_engine = FakeEngine()
        self.pace, self.fail = 0.0, {}

    @property
    def engine(self):
        return self.fake_engine

    def warmup(self):
        pass

    def stream_async(self, request, latency="exact"):
        return _FakeStream(self, request)

    def stream(self, request, latency="exact"):
        return _FakeStream(self, request)

    def pieces(self, request) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Texts, their samples, and the silence after them."""
        voice = request.voice if isinstance(request.voice, Voice) else None  # a path: that of the warm-up
        voice = None if voice is None else voice.global_ids.tolist()
        style = voice, request.gender, request.pitch, request.speed, request.pitch_hz, request.temperature
        plan, _ = self.plan(request)
        left = int(1e9) if request.max_seconds is None else round(request.max_seconds * 50)
        for number, piece in enumerate(plan.pieces):
            said = f"{piece.text} {style} {piece_seed(request.seed, number)}"
            draw = np.random.default_rng(list(hashlib.sha256(said.encode()).digest()))
            tokens = min(4 + 3 * len(piece.text), left)
            left -= tokens
            samples = 0.2 * draw.standard_normal(tokens * self.config.latent_hop_length)
            yield piece.text, samples.astype(np.float32), np.zeros(round(piece.pause * 16_000), np.float32)


class _FakeStream:
    def __init__(self, tts, request):
        self._tts, self._request, self._open = tts, request, False
        self.spans, self.voice = (), request.voice

    def _chunks(self):
        size, position = _CHUNK * self._tts.config.latent_hop_length, 0
        for number, (text, samples, pause) in enumerate(self._tts.pieces(self._request)):
            start = position
            for begin in range(0, len(samples), size):
                part = samples[begin : begin + size]
                yield AudioChunk(part, 16_000, position, number, text)
                position += len(part)
                for key, error in self._tts.fail.items():
                    if key in text:
                        raise error
            self.spans = (*self.spans, Span(text, start, position))
            if self.voice is None:
                self.voice = Voice(np.arange(self._tts.config.bicodec.speaker_encoder.token_num), np.zeros(0, np.int32))
            if len(pause):
                yield AudioChunk(pause, 16_000, position, number, text)
                position += len(pause)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        return self._chunks()

    async def __aenter__(self):
        self._open = True
        self._tts.fake_engine.running += 1
        return self

    async def __aexit__(self, *_):
        await self.aclose()

    async def __aiter__(self):
        for chunk in self._chunks():
            await asyncio.sleep(self._tts.pace)
            yield chunk

    async def aclose(self):
        if self._open:
            self._tts.fake_engine.running -= 1
        self._open = False
