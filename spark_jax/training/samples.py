"""Sounds and spectrograms of a codec run, for TensorBoard."""

import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from spark_jax.shared import distributed

N_FFT = 512
HOP_LENGTH = 128


class SampleWriter:
    """Writes pairs of original and reconstructed audio as a TensorBoard run of its own, once a run."""

    def __init__(self, directory: str | Path, sample_rate: int):
        self._board = SummaryWriter(str(directory)) if distributed.is_primary() else None
        self._sample_rate = sample_rate

    def write(
        self, step: int, originals: Float[np.ndarray, "items samples"], copies: Float[np.ndarray, "items samples"]
    ) -> None:
        """Writes both sounds of each item, and one image with the original's spectrogram above the copy's."""
        if self._board is None:
            return
        for i, pair in enumerate(zip(originals, copies, strict=True)):
            for name, wave in zip(("original", "reconstruction"), pair, strict=True):
                self._board.add_audio(f"{i}/{name}", wave, step, self._sample_rate)
            pixels = np.concatenate([spectrogram(wave) for wave in pair])
            image = Summary.Image(
                height=pixels.shape[0], width=pixels.shape[1], colorspace=1, encoded_image_string=png(pixels)
            )
            value = Summary.Value(tag=f"{i}/spectrogram", image=image)
            self._board.file_writer.add_summary(Summary(value=[value]), step)
        self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._board is not None:
            self._board.close()


def spectrogram(wave: Float[np.ndarray, " samples"]) -> UInt8[np.ndarray, "bins frames"]:
    """Returns log magnitudes as gray levels, −80 to 20 dB, low frequencies at the bottom."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, N_FFT)[::HOP_LENGTH]
    magnitude = np.abs(np.fft.rfft(frames * np.hanning(N_FFT)))
    decibels = 20 * np.log10(np.maximum(magnitude, 1e-4))
    return np.flipud(((decibels + 80) * 2.55).clip(0, 255).astype(np.uint8).T)


def png(pixels: UInt8[np.ndarray, "height width"]) -> bytes:
    """Encodes a gray PNG image; TensorBoard asks for one, and an image library would serve nothing else here."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # each row: filter type 0, pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content
