import pytest

from spark_jax.text.words import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Well, I don't know.", ["Well,", "I", "don't", "know."]),
        ('— "Yes" – he said - twice!', ['— "Yes" –', "he", "said -", "twice!"]),
        ("你好，world of 音乐。", ["你", "好，", "world", "of", "音", "乐。"]),
        ("  ...  ", []),
    ],
)
def test_words_have_the_signs_around_them(text, words):
    found = split_words(text)
    assert [word.text for word in found] == words
    assert all(text[word.start : word.end] == word.text for word in found)
