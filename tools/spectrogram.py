"""Spectrograms as PNG files, without a plotting library."""

import struct
import zlib
from pathlib import Path

import numpy as np
import scipy.signal
from jaxtyping import Float, UInt8

from spark_jax.shared import files

RANGE_DB = 70.0  # below the loudest
PIXELS_A_SECOND = 100
MAX_HZ = 8000.0
_WINDOW = 0.032  # s
# Colors from silence to the loudest, between which others are interpolated.
_COLORS = np.array([(13, 8, 40), (84, 20, 110), (187, 55, 84), (249, 142, 8), (252, 255, 190)], float)


def write_spectrogram(path: Path, samples: Float[np.ndarray, " time"], sample_rate: int) -> None:
    """Writes the spectrogram of speech: time to the right, frequency up, loudness by color."""
    window, hop = round(_WINDOW * sample_rate), max(1, sample_rate // PIXELS_A_SECOND)
    frequencies, _, values = scipy.signal.stft(samples, sample_rate, nperseg=window, noverlap=window - hop)
    power = np.abs(values[frequencies <= MAX_HZ]) ** 2
    level = 10 * np.log10(power / max(power.max(), 1e-20) + 1e-12)
    shade = np.clip(255 * (1 + level / RANGE_DB), 0, 255).astype(np.uint8)
    files.write_bytes(path, png(shade[::-1]))


def png(shades: UInt8[np.ndarray, "height width"]) -> bytes:
    """Returns an image, whose values choose colors, as a PNG file."""
    height, width = shades.shape
    place = np.linspace(0, len(_COLORS) - 1, 256)
    palette = np.stack([np.interp(place, range(len(_COLORS)), column) for column in _COLORS.T], axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in shades)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"PLTE", palette.round().astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(rows, 9)),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts) + chunk(b"IEND", b"")
