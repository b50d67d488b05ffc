"""The gallery's page, audio and spectrograms, with a stand-in for the model."""

import re
import types
import zlib

import make_gallery
import numpy as np
import pytest
from spectrogram import png, write_spectrogram

from spark_jax.evaluation.judges import registry
from spark_jax.evaluation.judges.signal import SignalJudge


class Hums:
    def plan(self, request):
        return None

    def voice(self, reference, transcript=None):
        return None

    def synthesize_batch(self, requests):
        for number, request in enumerate(requests):
            samples = 0.2 * np.sin(np.arange(6400) * (0.05 if request.gender == "male" else 0.1))
            yield number, types.SimpleNamespace(samples=samples, sample_rate=16_000, reached_limit=False, checks=())


class OneModel:
    def tts(self, label):
        return Hums()

    codec = tts


@pytest.fixture
def hums(monkeypatch):
    monkeypatch.setattr(make_gallery, "LoadedModels", lambda paths: OneModel())
    monkeypatch.setattr(registry, "JUDGES", dict.fromkeys(registry.JUDGES, lambda options: SignalJudge()))


def test_every_clip_has_audio_a_spectrogram_and_a_score(hums, tiny_model_directory, tmp_path):
    make_gallery.main(tiny_model_directory, tmp_path / "docs", tmp_path / "work", 0, None, "signal")
    page = (tmp_path / "docs" / "gallery.md").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 2 * (2 + 10 + 10 + 12 + 1) and len(set(sources)) == len(sources)
    for source in sources:
        assert (tmp_path / "docs" / source).stat().st_size > 100
    assert page.count("self-correlation") == len(sources) // 2 and "## Cloning" in page


def test_a_tone_is_a_line_at_its_frequency(tmp_path):
    write_spectrogram(tmp_path / "tone.png", np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000), 16_000)
    content = (tmp_path / "tone.png").read_bytes()
    width, height = (int.from_bytes(content[place : place + 4], "big") for place in (16, 20))
    start = content.index(b"IDAT")
    rows = np.frombuffer(zlib.decompress(content[start + 4 :]), np.uint8).reshape(height, width + 1)[:, 1:]
    assert width == pytest.approx(101, abs=1) and rows[:, 50].argmax() == pytest.approx(0.75 * height, abs=2)


def test_an_image_is_a_png():
    content = png(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content.endswith(b"IEND\xaeB`\x82")
