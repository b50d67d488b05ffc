import random
import time

import pytest

from spark_jax.text.split import split_text, spoken_length


def texts(text: str, most: int = 200, join: bool = False) -> list[str]:
    return [piece.text for piece in split_text(text, most, join=join)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. Smith went to Washington, D.C.", "He met J. R. Jones at 3:30 p.m.", "They talked."],
        ["It cost 3.50 dollars.", "Visit example.com.", "Then... he left.", "Why?", "Because (he said) it is so."],
        ["“Stop!” he said.", "She asked, “Why?”", "“No.”", "(Really.)", "Yes!"],
        ["今天天气很好。", "我们去公园吧！", "好吗？", "He said yes.", "然后，我们走了。"],
        ["Mr. and Mrs. Jones live at 5 St. James St. in the U.S. today.", "No. 5 is e.g. there, etc. and so on."],
        ["Wait… what?", "Well...", "Maybe."],
        ["One.", "Two!", "Three?!", "Four"],
        ["He was No. 1.", "I am I.", "It was him and I.", "Then it ended."],
    ],
)
def test_sentences(sentences):
    assert texts(" ".join(sentences)) == sentences


def test_short_sentences_are_joined_and_paragraphs_never():
    text = "One two. Three four. Five six seven.\n\nEight. Nine."
    assert texts(text, 24, join=True) == ["One two. Three four.", "Five six seven.", "Eight. Nine."]
    boundaries = [piece.boundary for piece in split_text(text, 24)]
    assert boundaries == ["sentence", "paragraph", "paragraph"]


def test_a_long_sentence_is_divided_at_clauses_then_at_spaces_then_anywhere():
    text = "The first part is short, the second, which is 1,000 words long, has no end at all here; and then, it ends."
    assert texts(text, 40) == [
        "The first part is short, the second,",
        "which is 1,000 words long,",
        "has no end at all here; and then,",
        "it ends.",
    ]
    assert texts("one two three four five", 10) == ["one two", "three four", "five"]
    assert texts("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


def test_ideographs_take_longer():
    assert spoken_length("你好") == 8
    assert texts("今天天气很好我们去公园", 20) == ["今天天气很", "好我们去公", "园"]


def test_pieces_cover_the_text_and_fit():
    rng = random.Random(1)
    parts = [
        "word",
        "Mr. ",
        "U.S. ",
        ". ",
        "! ",
        "? ",
        ", ",
        "a",
        " ",
        "\n\n",
        "\n",
        "。",
        "你好",
        "，",
        "3.5",
        "1,000",
    ]
    parts += ["“", "”", "(", ")", "…", "x" * 20, "- "]
    for _ in range(1000):
        check_cover("".join(rng.choice(parts) for _ in range(rng.randint(0, 120))), rng.randint(8, 120))


def test_pieces_cover_any_unicode_text():
    rng = random.Random(2)
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x590, 0x6FF), (0x2000, 0x206F), (0x3000, 0x30FF)]
    ranges += [(0x4E00, 0x9FFF), (0xFE00, 0xFFFF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0, 0x10FFFF)]
    for _ in range(1000):
        chosen = rng.sample(ranges, rng.randint(1, len(ranges)))
        codes = [rng.randint(*rng.choice(chosen)) for _ in range(rng.randint(0, 150))]
        check_cover("".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000), rng.randint(8, 120))


def check_cover(text, most):
    """Pieces joined by the white space between them are the text; each fits."""
    for join in (True, False):
        position, joined = 0, ""
        for piece in split_text(text, most, join=join):
            assert text[position : piece.start].strip() == ""
            assert text[piece.start : piece.end] == piece.text == piece.text.strip() != ""
            assert spoken_length(piece.text) <= most
            joined += text[position : piece.start] + piece.text
            position = piece.end
        assert text[position:].strip() == "" and joined + text[position:] == text


@pytest.mark.parametrize("part", ["word ", "word, ", "A sentence. ", "x", "你", "(", "3.5 ", "\n\n"])
def test_time_grows_with_the_text_alone(part):
    start = time.perf_counter()
    split_text(part * 30_000, 70)
    assert time.perf_counter() - start < 20  # quadratic time takes minutes


def test_too_short_pieces_are_refused():
    with pytest.raises(ValueError, match="max_length is 3"):
        split_text("text", 3)
