"""Words and numbers of a request: instructions, speeds, formats."""

import numpy as np
import pytest

from spark_jax.errors import SparkError
from spark_jax.inference.request import Request
from spark_jax.serve.encoders import Encoder
from spark_jax.serve.instructions import Attributes, read_instructions
from spark_jax.serve.schema import SpeechBody
from spark_jax.serve.settings import ServerSettings
from spark_jax.serve.style import resolve_style
from spark_jax.text import attributes
from spark_jax.text_config import TextConfig


@pytest.mark.parametrize(
    ("text", "gender", "pitch", "speed"),
    [
        ("", None, None, None),
        ("Speak in a cheerful and positive tone.", None, None, None),
        ("A woman with a deep voice who speaks slowly", "female", "low", "low"),
        ("female, very high pitch, very fast", "female", "very_high", "very_high"),
        ("gender: male; pitch: very low; speed=moderate", "male", "very_low", "moderate"),
        ("An old man and a woman", None, None, None),
        ("Speak very quickly in a normal tone, high-pitched at the end", None, "moderate", "very_high"),
        ("a male voice of low pitch at normal speed", "male", "low", "moderate"),
        ("High quality, low noise", None, None, None),
    ],
)
def test_instructions(text, gender, pitch, speed):
    assert read_instructions(text) == Attributes(gender, pitch, speed)


def style(controls=None, **fields):
    config = TextConfig() if controls is None else TextConfig(controls=controls)
    return resolve_style(SpeechBody(input="Hello there.", **fields), config)[0]


def test_speed_by_the_model_where_it_has_learned_it_and_by_a_stretch_elsewhere():
    assert style(speed=2.0).stretch == 2.0  # no pitch is known
    assert style(speed=2.0, voice="female", controls=("gender",)).stretch == 2.0
    for speed in (0.25, 0.5, 0.9, 1.1, 1.5, 2.0, 3.0, 4.0):
        found = style(speed=speed, voice="female", pitch="high")
        value = attributes.speed_value(found.syllables_per_second)
        assert 1 <= value <= 10
        # The nearest whole number of syllables does most of it, and both together do all.
        assert (value + 0.5) / 4.5 * found.stretch == pytest.approx(speed)
        assert 0.8 < found.stretch < 1.25 or value in (1, 10)
        assert attributes.pitch_level(found.pitch_hz, "female") == attributes.level_id("high")
        Request(text="Hello.", gender=found.gender, pitch_hz=found.pitch_hz, syllables_per_second=float(value))
    assert style(speed=1.0, voice="female").stretch == 1.0
    values = style(speed=2.0, pitch_hz=200.0, syllables_per_second=3.0)
    assert values.syllables_per_second == 6.0


@pytest.mark.parametrize("gender", attributes.GENDERS)
@pytest.mark.parametrize("level", attributes.LEVELS)
def test_typical_values_are_of_their_levels(gender, level):
    found = style(speed=1.001, voice=gender, pitch=level, speed_level=level)
    assert attributes.pitch_level(found.pitch_hz, gender) == attributes.level_id(level)


@pytest.mark.parametrize("name", ["pcm", "wav", "mp3", "opus", "aac", "flac"])
@pytest.mark.parametrize("stretch", [1.0, 1.7])
def test_chunks_do_not_change_the_bytes_in_sum(name, stretch):
    """But for where packets of a codec are cut, nothing depends on how the samples came."""
    samples = (0.3 * np.sin(np.arange(20_000) / 20)).astype(np.float32)

    def encode(size):
        encoder = Encoder(name, 16_000, None, stretch)
        parts = [encoder.push(samples[start : start + size]) for start in range(0, len(samples), size)]
        assert name == "flac" or len(parts) < 2 or any(parts[:-1])
        return b"".join([*parts, encoder.finish()])

    whole = encode(20_000)
    assert len(whole) > 1000
    if name in ("pcm", "wav"):
        assert len(encode(777)) == len(whole)
    else:
        assert encode(777) == encode(777)
    if stretch == 1.0 and name == "wav":
        assert encode(777) == whole


def test_settings_are_checked():
    for wrong in ({"queue": -1}, {"timeout": 0.0}, {"api_keys": (" ",)}, {"drain": float("inf")}):
        with pytest.raises(SparkError, match=next(iter(wrong))):
            ServerSettings(**wrong)
    assert ServerSettings(queue=0).queue == 0
