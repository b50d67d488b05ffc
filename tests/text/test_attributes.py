import math

import pytest

from spark_jax.errors import SparkError
from spark_jax.text import attributes


def mel_to_hz(mel):
    return 700.0 * (10 ** (mel / 2595.0) - 1.0)


@pytest.mark.parametrize("gender", ["female", "male"])
def test_pitch_levels_on_both_sides_of_every_boundary(gender):
    a, b, c, d = attributes.PITCH_BOUNDARIES_MEL[gender]
    for boundary, below, above in ((a, 0, 1), (b, 1, 2), (c, 2, 3), (d, 3, 4)):
        assert attributes.pitch_level(mel_to_hz(boundary - 1e-3), gender) == below
        assert attributes.pitch_level(mel_to_hz(boundary + 1e-3), gender) == above


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_boundary_itself_belongs_to_the_side_nearer_to_moderate(language):
    a, b, c, d = attributes.SPEED_BOUNDARIES[language]
    assert [attributes.speed_level(x, language) for x in (a, b, c, d)] == [1, 2, 2, 3]
    assert attributes.speed_level(0.0, language) == 0
    assert attributes.speed_level(d + 1e-6, language) == 4


def test_values_are_truncated_and_clipped():
    assert attributes.hz_to_mel(700.0) == pytest.approx(2595.0 * math.log10(2.0))
    assert attributes.pitch_value(196.0) == int(2595.0 * math.log10(1.0 + 196.0 / 700.0)) == 278
    assert attributes.pitch_value(0.0) == 0
    assert attributes.pitch_value(8000.0) == 1000
    assert [attributes.speed_value(x) for x in (0.0, 4.99, 10.0, 25.0)] == [0, 4, 10, 10]


def test_names_have_the_numbers_of_the_tokens():
    assert [attributes.level_id(name) for name in attributes.LEVELS] == [0, 1, 2, 3, 4]
    assert (attributes.gender_id("female"), attributes.gender_id("male")) == (0, 1)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: attributes.level_id("loud"), ["'loud'", "very_low", "very_high"]),
        (lambda: attributes.gender_id("robot"), ["'robot'", "female, male"]),
        (lambda: attributes.pitch_level(200.0, "robot"), ["'robot'", "female, male"]),
        (lambda: attributes.speed_level(4.0, "fr"), ["'fr'", "zh, en"]),
        (lambda: attributes.pitch_value(math.nan), ["nan"]),
        (lambda: attributes.speed_value(-1.0), ["-1.0"]),
    ],
)
def test_bad_values_are_named_in_one_line(call, parts):
    with pytest.raises(SparkError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
