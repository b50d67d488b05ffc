"""Sounds and spectrograms: what TensorBoard gets, and that the pictures show the sounds."""

import io
import struct
import zlib

import numpy as np
import soundfile
from helpers.event_files import read_values

from spark_jax.training import samples

RATE = 16_000


def tone(hertz, amplitude=0.5, seconds=0.25):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)


def pixels_of(image):
    """A gray PNG of filter type 0, chunk by chunk."""
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, start = {}, 8
    while start < len(image):
        length, kind = struct.unpack_from(">I4s", image, start)
        chunks[kind] = image[start + 8 : start + 8 + length]
        (checksum,) = struct.unpack_from(">I", image, start + 8 + length)
        assert checksum == zlib.crc32(kind + chunks[kind])
        start += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *settings = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert settings == [8, 0, 0, 0, 0]  # bits a pixel, gray, and the only methods there are; not interlaced
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:]


def test_a_png_holds_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(pixels_of(samples.png(pixels)), pixels)


def test_a_spectrogram_shows_the_tone_at_its_place():
    gray, quieter = (samples.spectrogram(tone(1000, amplitude)) for amplitude in (0.02, 0.002))
    assert gray.dtype == np.uint8 and gray.shape == (257, 1 + (4000 - 512) // 128)
    assert (gray.argmax(axis=0) == 256 - 1000 * 512 // RATE).all()  # low frequencies at the bottom
    assert gray[224, 3] - quieter[224, 3] in (50, 51, 52)  # 20 dB, of 100 that 255 levels show
    assert (samples.spectrogram(np.zeros(512)) == 0).all()


def test_both_sounds_of_each_item_and_their_picture_are_written(tmp_path):
    originals, copies = (np.stack([tone(hertz, amplitude) for hertz in (500, 2000)]) for amplitude in (0.5, 0.1))
    writer = samples.SampleWriter(tmp_path / "samples", RATE)
    writer.write(7, originals, copies)
    writer.close()
    values = read_values(tmp_path / "samples")
    names = ("original", "reconstruction", "spectrogram")
    assert set(values) == {(f"{item}/{name}", 7) for item in (0, 1) for name in names}
    for item in (0, 1):
        for name, waves in (("original", originals), ("reconstruction", copies)):
            audio = values[f"{item}/{name}", 7].audio
            found, rate = soundfile.read(io.BytesIO(audio.encoded_audio_string))
            assert rate == audio.sample_rate == RATE and audio.num_channels == 1
            np.testing.assert_allclose(found, waves[item], atol=2 / 2**15)
        image = values[f"{item}/spectrogram", 7].image
        pixels = pixels_of(image.encoded_image_string)
        assert pixels.shape == (image.height, image.width) == (2 * 257, 28) and image.colorspace == 1
        expected = [samples.spectrogram(waves[item]) for waves in (originals, copies)]  # the original above
        np.testing.assert_array_equal(pixels, np.concatenate(expected))


def test_of_several_processes_the_first_writes_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(samples.distributed, "is_primary", lambda: False)
    writer = samples.SampleWriter(tmp_path / "samples", RATE)
    writer.write(1, tone(500)[None], tone(500)[None])
    writer.close()
    assert not (tmp_path / "samples").exists()
