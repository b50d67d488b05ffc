"""Ogg files whose bytes depend on the audio alone."""

import io

import numpy as np
import pytest
import soundfile

from spark_jax.audio import ogg, write

SAMPLES = 0.1 * np.sin(np.arange(16_000) / 20)


def encoded(coding):
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, 16_000, format="OGG", subtype=coding)
    return file.getvalue()


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_only_serial_and_checksum_change(coding):
    content = encoded(coding)
    changed = ogg.with_serial(content, 7)
    assert len(changed) == len(content)
    before, after = list(ogg.pages(content)), list(ogg.pages(changed))
    assert len(before) == len(after) > 2
    for old, new in zip(before, after, strict=True):
        assert old[:14] == new[:14] and old[18:22] == new[18:22] and old[26:] == new[26:]
        assert int.from_bytes(new[14:18], "little") == 7
        stored = int.from_bytes(old[22:26], "little")  # by libogg
        assert ogg.checksum(old[:22] + bytes(4) + old[26:]) == stored
    np.testing.assert_array_equal(*(soundfile.read(io.BytesIO(bytes(data)))[0] for data in (content, changed)))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3"])
def test_the_same_audio_is_the_same_file(tmp_path, name):
    contents = set()
    for _ in range(3):
        write.write_audio(tmp_path / name, SAMPLES, 16_000)
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1
