import itertools
import random
import time

import pytest
from helpers.random_text import random_text

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
        ("I don´t, ¨ ´a", "I don't, ¨ 'a"),
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
    assert clean_text("One\r\nline.\rTwo.\r\rThree.", paragraphs=True) == "One line. Two.\n\nThree."


def test_titles_items_and_rows_are_paragraphs():
    text = "# One\nTwo.\n- three\n  goes on\n- four\n1. five\n2) six\n| a | b. |\n|---|:-:|\n| c | d |"
    expected = ["One", "Two.", "three goes on", "four", "1. five", "2) six", "a, b.", "c, d."]
    assert clean_text(text, paragraphs=True).split("\n\n") == expected
    assert clean_text(text) == " ".join(expected)


def test_text_as_it_is_written_keeps_its_characters():
    text = "“Curly” — it’s ＡＢＣ, ﬁne, 你好，世界！"
    assert clean_text(f"  {text}\u200b ", fold=False) == text


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
        ("NASA is in the USA", "Nasa is in the USA"),
        ("The WATER was COLD. NEVER again!", "The water was cold. Never again!"),
        ("by HTTPS", "by HTTPS"),
        ("你好", "你好"),
        ("5", "5"),
    ],
)
def test_capitals(shouted, said):
    assert lower_shouting(shouted) == said


@pytest.mark.parametrize(("seed", "count"), [(0, 60), pytest.param(1, 240, marks=pytest.mark.extended)])
def test_cleaning_twice_is_cleaning_once(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        text = random_text(rng, rng.randint(1, 400))
        for paragraphs, fold in itertools.product((False, True), repeat=2):
            cleaned = clean_text(text, paragraphs=paragraphs, fold=fold)
            assert clean_text(cleaned, paragraphs=paragraphs, fold=fold) == cleaned
            assert cleaned == cleaned.strip()
            assert "  " not in cleaned


@pytest.mark.parametrize("part", ["*", "[", "_a", "`", "a*", "](", "> ", "#", "~~a"])
def test_time_grows_with_the_text_alone(part):
    start = time.perf_counter()
    clean_text(part * 10_000)
    assert time.perf_counter() - start < 20  # quadratic time takes minutes
