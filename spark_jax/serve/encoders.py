"""Samples into bytes of a format, chunk by chunk: what has been given out is never changed again."""

import io
import struct
from typing import Any, NamedTuple

import numpy as np
import soxr
from jaxtyping import Float

from spark_jax.serve.schema import PCM_RATE
from spark_jax.serve.stretch import Stretch
from spark_jax.shared.extra import needs_extra

with needs_extra("serve"):
    import av


class Format(NamedTuple):
    """A format as FFmpeg knows it.

    Attributes:
      media_type: for HTTP.
      muxer, codec: names of FFmpeg's; None: no compression.
      bit_rate: bits a second; None: the codec's own.
      rates: Hz that it has; none: any.
      options: of the muxer.
    """

    media_type: str
    muxer: str | None = None
    codec: str | None = None
    bit_rate: int | None = None
    rates: tuple[int, ...] = ()
    options: dict[str, str] = {}  # noqa: RUF012 (nobody changes it)


# Ogg pages of 20 ms, so that a first chunk of speech does not wait for a second of it.
_OGG = {"page_duration": "20000"}
_MP3 = {"write_xing": "0", "id3v2_version": "0"}  # both are written at the end into what has gone out
FORMATS = {
    "pcm": Format("audio/pcm"),
    "wav": Format("audio/wav"),
    "flac": Format("audio/flac", "flac", "flac"),
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", 64_000, (16_000, 22_050, 24_000, 44_100, 48_000), _MP3),
    "opus": Format("audio/ogg", "ogg", "libopus", 32_000, (8_000, 16_000, 24_000, 48_000), _OGG),
    "aac": Format("audio/aac", "adts", "aac", 64_000),
}
_UNKNOWN_LENGTH = 0xFFFFFFFF


class _Sink(io.RawIOBase):
    """Takes what a muxer writes; it cannot be sought in."""

    def __init__(self):
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self.content)
        self.content.clear()
        return taken


class Encoder:
    """Turns the speech of a request into bytes.

    Attributes:
      media_type: of what it makes.
      sample_rate: of what it makes, in Hz.
    """

    def __init__(self, name: str, model_rate: int, sample_rate: int | None = None, stretch: float = 1.0):
        """Args:
        name: a key of `FORMATS`.
        model_rate: of the samples that come, in Hz.
        sample_rate: that is wanted; None: that of the samples, for PCM the contract's. A coding that does not have it
          gets the next higher one.
        stretch: times faster.
        """
        self._format = FORMATS[name]
        self.media_type = self._format.media_type
        wanted = sample_rate or (PCM_RATE if name == "pcm" else model_rate)
        rates = self._format.rates or (wanted,)
        self.sample_rate = min((rate for rate in rates if rate >= wanted), default=rates[-1])
        self._stretch = Stretch(stretch, model_rate) if stretch != 1.0 else None
        self._resample = None
        if self.sample_rate != model_rate:
            self._resample = soxr.ResampleStream(model_rate, self.sample_rate, 1, quality="HQ")
        self._sink, self._header, self._position = _Sink(), b"", 0
        if self._format.codec is not None:
            self._open()
        elif name == "wav":
            self._header = _wave_header(self.sample_rate)

    def push(self, samples: Float[np.ndarray, " time"]) -> bytes:
        """Returns the bytes that are ready after more samples."""
        return self._encode(samples, last=False)

    def finish(self) -> bytes:
        """Returns the rest."""
        return self._encode(np.zeros(0, np.float32), last=True)

    def close(self) -> None:
        """Lets go of the library's memory; nothing comes after it."""
        if self._format.codec is not None and self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        own = self._format
        options = {"fflags": "+bitexact", **own.options}  # the same speech, the same bytes: no serial drawn by lot
        self._container = av.open(self._sink, "w", format=own.muxer, options=options)
        self._stream = self._container.add_stream(own.codec, rate=self.sample_rate, layout="mono")
        if own.bit_rate is not None:
            self._stream.bit_rate = own.bit_rate

    def _encode(self, samples: Float[np.ndarray, " time"], last: bool) -> bytes:
        samples = np.asarray(samples, np.float32)
        if self._stretch is not None:
            samples = self._stretch.push(samples)
            if last:
                samples = np.concatenate([samples, self._stretch.finish()])
        if self._resample is not None:
            samples = self._resample.resample_chunk(samples, last=last)
        values = np.round(np.clip(samples, -1.0, 1.0) * 32767).astype("<i2")
        header, self._header = self._header, b""
        if self._format.codec is None:
            return header + values.tobytes()
        if len(values):
            frame = av.AudioFrame.from_ndarray(values[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = self.sample_rate, self._position
            self._position += len(values)
            self._container.mux(self._stream.encode(frame))
        if last:
            self._container.mux(self._stream.encode(None))
            self.close()
        return self._sink.take()


def _wave_header(rate: int) -> bytes:
    """Returns the head of a WAV file that ends where it ends: nobody knows its length yet."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", _UNKNOWN_LENGTH, b"WAVE") + form + struct.pack("<4sI", b"data", _UNKNOWN_LENGTH)
    )
