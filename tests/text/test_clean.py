import random
import time

import pytest

from spark_jax.text.clean import clean_text, has_speech, lower_shouting

PLAIN = "The children played in the water all day."


@pytest.mark.parametrize(
    "written",
    [
        f"  {PLAIN}  ",
        PLAIN.replace(" ", "  "),
        PLAIN.replace(" ", "\t"),
        PLAIN.replace(" ", "\u00a0"),
        PLAIN.replace(" ", "\u2009"),
        PLAIN.replace(" ", "\u3000"),
        PLAIN.replace(" played", "\r\nplayed"),
        PLAIN.replace(" played", "\nplayed"),
        PLAIN + "\r\n",
        PLAIN.replace("children", "chil\u00addren"),
        PLAIN.replace("children", "chil\u200bdren"),
        PLAIN.replace("children", "chil\u2060dren"),
        "\ufeff" + PLAIN,
        PLAIN.replace("water", "wa\x07ter"),
        "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in PLAIN),
        PLAIN.replace("children", "**children**"),
        PLAIN.replace("children", "*children*"),
        PLAIN.replace("children", "_children_"),
        PLAIN.replace("children", "`children`"),
        PLAIN.replace("children", "[children](https://example.com/a_(b))"),
        "# " + PLAIN,
        "> " + PLAIN,
        "- " + PLAIN,
        "\u202a" + PLAIN + "\u202c",
    ],
)
def test_spellings_of_one_sentence(written):
    assert clean_text(written) == PLAIN


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("It’s “fine”.", 'It\'s "fine".'),
        ("ﬁne ﬂour", "fine flour"),
        ("x² + y²", "x² + y²"),
        ("1½ cups and ¾", "1 1/2 cups and 3/4"),
        ("№ 5", "№ 5"),
        ("snake_case and 2*3*4 and 3 * 4", "snake_case and 2*3*4 and 3 * 4"),
        ("你好，世界！“引号” ＡＢＣ１２３", "你好，世界！“引号” ABC123"),
        ("full，width in English！", "full,width in English!"),
        ("e\u0301te\u0301", "été"),
        ("***both*** and ~~gone~~", "both and gone"),
        ("> # deep", "deep"),
        ("", ""),
        ("\u200b\n", ""),
    ],
)
def test_what_stays_and_what_goes(written, cleaned):
    assert clean_text(written) == cleaned


def test_paragraphs_are_kept_where_they_are_asked_for():
    text = "One\nline.\r\n\r\nTwo.\n \n\nThree."
    assert clean_text(text) == "One line. Two. Three."
    assert clean_text(text, paragraphs=True) == "One line.\n\nTwo.\n\nThree."


@pytest.mark.parametrize("text", ["...", "?", "\U0001f600", "\u200b", " ", "—", "♪ ♫"])
def test_nothing_to_say(text):
    assert not has_speech(clean_text(text))


@pytest.mark.parametrize("text", ["a", "5", "你", "é", "٣", "½"])
def test_something_to_say(text):
    assert has_speech(clean_text(text))


@pytest.mark.parametrize(
    ("shouted", "said"),
    [
        ("THE CHILDREN PLAYED. I AM HERE!", "The children played. I am here!"),
        ("WONDERFUL", "Wonderful"),
        ("USA", "USA"),
        ("NASA is here", "NASA is here"),
        ("你好", "你好"),
        ("5", "5"),
    ],
)
def test_capitals(shouted, said):
    assert lower_shouting(shouted) == said


def random_text(rng: random.Random, length: int) -> str:
    kinds = [
        lambda: chr(rng.randrange(0x110000)),
        lambda: chr(rng.randrange(0x3000)),
        lambda: chr(rng.randrange(0x4E00, 0x9FFF)),
        lambda: rng.choice("abc XYZ 0123456789.,:/-$%&*_#`()[]\n\t'\">~"),
    ]
    return "".join(rng.choice(kinds)() for _ in range(length))


def test_cleaning_twice_is_cleaning_once():
    rng = random.Random(0)
    for _ in range(300):
        text = random_text(rng, rng.randint(1, 400))
        for paragraphs in (False, True):
            cleaned = clean_text(text, paragraphs=paragraphs)
            assert clean_text(cleaned, paragraphs=paragraphs) == cleaned
            assert cleaned == cleaned.strip()
            assert "  " not in cleaned


@pytest.mark.parametrize("part", ["*", "[", "_a", "`", "a*", "](", "> ", "#", "~~a"])
def test_time_grows_with_the_text_alone(part):
    start = time.perf_counter()
    clean_text(part * 10_000)
    assert time.perf_counter() - start < 20  # quadratic time takes minutes
