import numpy as np
import pytest

from spark_jax.text.syllables import count_syllables


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...?! 🙂", 0),
        ("The children played in the water all day.", 10),
        ("cake", 1),
        ("table", 2),
        ("wanted", 2),
        ("boxes", 2),
        ("Don’t stop", 2),
        ("BBC", 3),
        ("hmm", 1),
        ("今天天气很好。", 6),
        ("今天 is good", 4),
        ("こんにちは", 5),
        ("안녕하세요", 5),
        ("Привет", 2),
        ("Καλημέρα", 4),
        ("naïve café", 3),
        ("50 %", 4),
        ("مرحبا", 2),
    ],
)
def test_counts(text, count):
    assert count_syllables(text) == count


def test_any_text_has_a_count():
    """More text has no fewer syllables, whatever the characters are."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        points = rng.integers(1, 0x110000 if rng.random() < 0.5 else 0x3000, rng.integers(1, 200))
        text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        assert 0 <= count_syllables(text) <= 2 * len(text)
        assert count_syllables(text) <= count_syllables(f"{text} hello") == count_syllables(text) + 2
