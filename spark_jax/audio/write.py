"""Audio files out: the format is that of the name's extension, or named."""

import io
import os
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

from spark_jax.audio.load import check_finite, resample
from spark_jax.audio.ogg import with_serial
from spark_jax.errors import SparkError
from spark_jax.shared import files

# Name, libsndfile's container and coding, and the sample rates (Hz) that the coding has; none: any.
_MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
FORMATS = {
    "wav": ("WAV", "PCM_16", ()),
    "flac": ("FLAC", "PCM_16", ()),
    "ogg": ("OGG", "VORBIS", ()),
    "mp3": ("MP3", "MPEG_LAYER_III", _MP3_RATES),
    "opus": ("OGG", "OPUS", (8_000, 12_000, 16_000, 24_000, 48_000)),
}
_ALIASES = {"wave": "wav", "oga": "ogg"}


def format_of(path: str | os.PathLike[str], format: str | None = None) -> str:
    """Returns the format that a file is written in, a key of `FORMATS`.

    Args:
      path: the extension says which; a device, a pipe and a name without an extension get WAV.
      format: takes the extension's place; None: the extension counts.

    Raises:
      SparkError: there is no such format, or the installed libsndfile cannot write it.
    """
    extension = Path(path).suffix[1:].lower()
    name = extension if format is None else format.lower()
    name = _ALIASES.get(name, name)
    if format is None and (not name or (name not in FORMATS and files.is_device(path))):
        return "wav"
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        if format is None:
            raise SparkError(f"{path}: extension {Path(path).suffix!r} is no format of audio, expected one of {known}")
        raise SparkError(f"format {format!r} is unknown, expected one of {known}")
    if not soundfile.check_format(*FORMATS[name][:2]):
        raise SparkError(f"{path}: libsndfile {soundfile.__libsndfile_version__} cannot write {name}; expected wav")
    return name


def write_audio(
    path: str | os.PathLike[str],
    samples: Float[np.ndarray, " time"],
    sample_rate: int,
    format: str | None = None,
) -> None:
    """Writes one channel of audio; see `files.open_atomic`. Samples beyond ±1 are clipped.

    The same samples give the same bytes. WAV and FLAC are of 16 bits. Where the coding has no such sample rate, the
    next higher one that it has is written.

    Args:
      path: where it goes.
      samples: amplitude in [-1, 1].
      sample_rate: of the samples, in Hz.
      format: see `format_of`.

    Raises:
      SparkError: the format is unknown, samples are NaN or infinite, or the folder is missing or cannot be written.
    """
    name = format_of(path, format)
    samples = np.asarray(samples, np.float64)
    check_finite(samples, path)
    content = _encoded(samples, sample_rate, name)
    parent = Path(path).parent
    if not parent.is_dir():
        raise SparkError(f"{path}: the folder {parent} does not exist")
    files.write_bytes(path, content)


def _encoded(samples: Float[np.ndarray, " time"], sample_rate: int, name: str) -> bytes:
    container, coding, rates = FORMATS[name]
    if rates and sample_rate not in rates:
        rate = min((rate for rate in rates if rate > sample_rate), default=rates[-1])
        samples, sample_rate = resample(samples, sample_rate, rate), rate
    samples = np.clip(samples, -1.0, 1.0)
    if coding == "PCM_16":
        samples = np.round(samples * 32767).astype(np.int16)
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", sample_rate, 1, coding, format=container) as file:
        for start in range(0, len(samples), sample_rate):  # libsndfile's Vorbis keeps a whole write on its stack
            file.write(samples[start : start + sample_rate])
    # Not getbuffer(): Python's garbage collector crashes on a view that outlives its file in an exception's cycle.
    return with_serial(content.getvalue()) if container == "OGG" else content.getvalue()
