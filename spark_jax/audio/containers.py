"""Opens sound files: what libsndfile reads, streams that were never closed, and the files of phones and browsers.

Nothing is believed that a header says about lengths: samples come in blocks of a bounded size until the file ends, so
that a header of four lies asks for no memory.
"""

import contextlib
import dataclasses
import io
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from spark_jax.audio.quiet import silent_libraries
from spark_jax.errors import SparkError, one_line
from spark_jax.shared.extra import needs_extra
from spark_jax.shared.files import cannot_read

MIN_RATE, MAX_RATE = 4_000, 768_000  # Hz: half of a telephone's, and what no converter goes beyond
READABLE = "WAV, FLAC, OGG, MP3"
_BLOCK_VALUES = 2**18  # samples of all channels in a block: 2 MB
_KNOWN_FRAMES = 2**40  # a header that says more does not know how long its file is

# Containers that libsndfile does not read, by their first bytes: FFmpeg's name, and what people call them. Only these
# demuxers are ever asked: others follow references to further files.
_MATROSKA = b"\x1a\x45\xdf\xa3"
_MP3 = b"ID3"  # or a frame's first byte, 0xFF
_ADTS = (b"\xff\xf1", b"\xff\xf9")


class MissingDecoderError(SparkError):
    """A sound file that an extra reads, which is not installed."""


@dataclasses.dataclass(frozen=True)
class Sound:
    """A sound file that is open.

    Attributes:
      rate: in Hz, between `MIN_RATE` and `MAX_RATE`.
      channels: how many.
      blocks: the samples, from the start; can be gone through once.
      frames: how many samples of a channel there are, as the header says; None: it does not know.
    """

    rate: int
    channels: int
    blocks: Iterator[Float[np.ndarray, "frames channels"]]
    frames: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class SoundBytes:
    """A sound file in memory, such as an upload; nothing of it is opened on a disk.

    Attributes:
      name: what errors call it; it is no path.
      content: the file.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


SoundSource = str | os.PathLike[str] | SoundBytes


@contextlib.contextmanager
def open_sound(source: SoundSource | bytes, name: str | None = None) -> Iterator[Sound]:
    """Opens a sound file to be read in blocks of float64.

    Args:
      source: the path of the file, or the file in memory, or its content.
      name: what errors call it; None: by its path.

    Raises:
      MissingDecoderError: reading it needs an extra.
      SparkError: the file is missing or no audio, or its sample rate is none of sound.
    """
    if isinstance(source, SoundBytes):
        source, name = source.content, name or source.name
    name = os.fspath(source) if name is None else name
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise SparkError(f"{name}: no such audio file")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            start = file.read(16)
            file.seek(0)
            container = _foreign_container(start)
            opened = _open_by_av(name, file, *container) if container else _open_by_libsndfile(file, start)
            with opened as sound:
                if not MIN_RATE <= sound.rate <= MAX_RATE:
                    raise SparkError(f"{name}: sample rate is {sound.rate} Hz, expected {MIN_RATE} to {MAX_RATE}")
                yield sound
    except soundfile.SoundFileError as error:
        raise SparkError(f"{name}: not readable as audio ({READABLE}): {_libsndfile_reason(error)}") from error
    except OSError as error:
        raise cannot_read(name, error) from error


def _foreign_container(start: bytes) -> tuple[str, str] | None:
    """Returns FFmpeg's and the common name of a container that libsndfile does not read, by its first bytes."""
    if start[4:8] == b"ftyp":
        return "mov", "MPEG-4 (m4a, mp4)"
    if start.startswith(_MATROSKA):
        return "matroska", "WebM or Matroska"
    return ("aac", "AAC") if start.startswith(_ADTS) else None


class _Stream(soundfile.SoundFile):
    """A sound file that is read from front to back.

    soundfile seeks after every read of what can be sought. That spoils a few samples at each seam in an MP3 file, and
    fails in FLAC streams that were never closed.
    """

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def _open_by_libsndfile(file: io.BufferedIOBase, start: bytes) -> Iterator[Sound]:
    with contextlib.ExitStack() as stack:
        in_memory = isinstance(file, io.BytesIO)
        # Of a file the descriptor: a path need not be text, and callbacks of Python's cannot raise.
        source: Any = file if in_memory else file.fileno()
        if start[:4] == b"RIFF" and start[8:12] == b"WAVE" and (closed := _closed_wave(file)) is not None:
            source = stack.enter_context(closed)
        file.seek(0)
        if not in_memory:
            os.lseek(file.fileno(), 0, os.SEEK_SET)  # which reading ahead has moved
        quiet = silent_libraries if start.startswith(_MP3) or start[:1] == b"\xff" else contextlib.nullcontext
        with quiet():
            sound = stack.enter_context(_Stream(source, closefd=False))
            if sound.format == "MP3":
                sound.seek(0)  # as soundfile.read does; the last bits of the samples depend on it
        frames = max(1, _BLOCK_VALUES // sound.channels)

        def blocks() -> Iterator[np.ndarray]:
            while True:
                with quiet():
                    block = sound.read(frames, dtype="float64", always_2d=True)
                if not len(block):
                    return
                yield block

        known = 0 < sound.frames < _KNOWN_FRAMES
        yield Sound(sound.samplerate, sound.channels, blocks(), sound.frames if known else None)


class _PatchedFile(io.RawIOBase):
    """A file some of whose bytes are others, in memory only."""

    def __init__(self, file: io.BufferedIOBase):
        if isinstance(file, io.BytesIO):
            self.content = mmap.mmap(-1, len(file.getbuffer()))
            self.content[:] = file.getvalue()
        else:
            self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._position = 0

    def close(self) -> None:
        self.content.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self.content)}[whence]
        self._position = max(0, start + offset)  # libsndfile's callbacks have no way to raise
        return self._position

    def readinto(self, buffer: Any) -> int:
        found = self.content[self._position : self._position + len(buffer)]
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


def _closed_wave(file: io.BufferedIOBase) -> _PatchedFile | None:
    """Returns a WAV file with its lengths set, where a writer that was never closed has left a data chunk empty."""
    size = file.seek(0, io.SEEK_END)
    data = _empty_data_chunk(file, size)
    if data is None:
        return None
    patched = _PatchedFile(file)
    patched.content[4:8] = struct.pack("<I", min(size - 8, 2**32 - 1))
    patched.content[data + 4 : data + 8] = struct.pack("<I", min(size - data - 8, 2**32 - 1))
    return patched


def _empty_data_chunk(file: io.BufferedIOBase, size: int) -> int | None:
    """Returns where a data chunk of length 0 begins that has no other chunk after it, though more bytes follow."""
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            rest = size - position - 8
            return position if length == 0 and rest and not _is_chunk(file.read(8), rest) else None
        position += 8 + length + length % 2
    return None


def _is_chunk(start: bytes, rest: int) -> bool:
    """Whether bytes look like the head of a chunk that fits in the rest of the file, such as tags after no data."""
    if len(start) < 8:
        return False
    name, length = struct.unpack("<4sI", start)
    return name.isascii() and name.decode("ascii").isprintable() and length <= rest - 8


def _libsndfile_reason(error: soundfile.SoundFileError) -> str:
    return one_line(getattr(error, "error_string", None) or error, 200)


@contextlib.contextmanager
def _open_by_av(name: str, file: io.BufferedIOBase, demuxer: str, kind: str) -> Iterator[Sound]:
    try:
        with needs_extra("av"):
            import av
    except SparkError as error:
        raise MissingDecoderError(f"{name}: {kind} is not read without a decoder: {error}") from error
    # FFmpeg's errors are of this class and of OSError or ValueError at once; ValueError alone comes of frames whose
    # form changes within the stream.
    faults = (av.error.FFmpegError, ValueError)

    def refuse(error: Exception) -> SparkError:
        return SparkError(f"{name}: not readable as {kind}: {one_line(getattr(error, 'strerror', None) or error, 200)}")

    try:
        container = av.open(file, format=demuxer)
    except faults as error:
        raise refuse(error) from error
    with container:
        if not container.streams.audio:
            raise SparkError(f"{name}: {kind} without an audio stream")
        stream = container.streams.audio[0]

        def blocks() -> Iterator[np.ndarray]:
            resampler = av.AudioResampler(format="dblp")  # one format of samples; rate and channels stay
            try:
                for frame in container.decode(stream):
                    yield from _arrays(resampler.resample(frame))
                yield from _arrays(resampler.resample(None))
            except faults as error:
                raise refuse(error) from error

        yield Sound(stream.rate or 0, stream.channels, blocks())


def _arrays(frames: list[Any]) -> Iterator[Float[np.ndarray, "frames channels"]]:
    return (frame.to_ndarray().T for frame in frames)
