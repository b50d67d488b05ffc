import random
import time

import pytest

from spark_jax.text.clean import clean_text
from spark_jax.text.normalize import spoken_text


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("In 1987 he bought 250 books.", "In nineteen eighty seven he bought two hundred and fifty books."),
        ("It costs $12.50.", "It costs twelve dollars and fifty cents."),
        ("It was 12.50 dollars.", "It was twelve dollars and fifty cents."),
        ("$1,000.00, $0.99 and $1", "one thousand dollars, ninety nine cents and one dollar"),
        ("€20 or £3.99", "twenty euros or three pounds and ninety nine pence"),
        ("a $1.5 million house", "a one point five million dollars house"),
        ("Dr. Smith and Mrs. Jones", "Doctor Smith and Missus Jones"),
        ("Mr. and Mrs. Jones vs. Prof. Lee", "Mister and Missus Jones versus Professor Lee"),
        ("Visit https://www.example.com/path today.", "Visit example dot com slash path today."),
        ("Visit example.com.", "Visit example dot com."),
        ("Write to a.b@example.org!", "Write to a dot b at example dot org!"),
        ("50% of us, 3.5 % more", "fifty percent of us, three point five percent more"),
        ("the 3rd prize, the 21st century", "the third prize, the twenty first century"),
        ("on Jan. 5th, 2024", "on the fifth of January, twenty twenty four"),
        ("2026-11-25", "the twenty fifth of November twenty twenty six"),
        ("at 3:30 PM.", "at three thirty P M."),
        ("at 5 p.m. we left", "at five P M we left"),
        ("It is 7:00.", "It is seven o'clock."),
        ("It weighs 5kg, 3.2km away", "It weighs five kilograms, three point two kilometers away"),
        ("100 m, 50 km/h, -5°C", "one hundred meters, fifty kilometers per hour, negative five degrees Celsius"),
        ("Call 555-1234.", "Call five five five, one two three four."),
        ("pages 10-20", "pages ten to twenty"),
        ("the 1990s and the '90s", "the nineteen nineties and the nineties"),
        ("1,234,567 people", "one million two hundred thirty four thousand five hundred and sixty seven people"),
        ("1/2 cup, 1½ cups", "one half cup, one and a half cups"),
        ("version v2.10.1", "version version two point ten point one"),
        ("x = 5 + 3", "x equals five plus three"),
        ("#1 and No. 5 & more", "number one and number five and more"),
        (
            "$1,234.56 and $5-10",
            "one thousand two hundred and thirty four dollars and fifty six cents and five to ten dollars",
        ),
        ("£5m, $3bn and 20 €", "five million pounds, three billion dollars and twenty euros"),
        ("2,500 books", "two thousand five hundred books"),
        ("100 000 people", "one hundred thousand people"),
        ("He ran 100 m.", "He ran one hundred meters."),
        ("24/7 since 9/11", "twenty four seven since nine eleven"),
        ("5×3, ±2", "five times three, plus or minus two"),
        ("x² and 5 m², 10³", "x squared and five square meters, ten to the power of three"),
        ("H₂O™ at 20℃", "H two O at twenty degrees Celsius"),
        ("— He left. — She stayed —", "He left. She stayed"),
        ("- one -- two -", "one, two"),
        ("'He left,' she said. Don't!", '"He left," she said. Don\'t!'),
        ("He said—quietly—no.", "He said, quietly, no."),
        ("e.g. this, i.e. that etc.", "for example this, that is that et cetera."),
        ("5'10\"", "five feet ten"),
        ('He said "I have 50" and left.', 'He said "I have fifty" and left.'),
        ("今天是2024年3月5日。", "今天是二零二四年三月五日。"),
        ("价格是12.5元，增长了50%！", "价格是十二点五元，增长了百分之五十！"),
        ("我有3个apple", "我有三个apple"),
    ],
)
def test_written_and_spoken(written, spoken):
    assert spoken_text(clean_text(written)) == spoken


@pytest.mark.parametrize(
    "text",
    [
        "The children played in the water all day.",
        "I'm here, don't worry: it's (really) fine; isn't it?",
        "Henry VIII and the U.S.A.",
        '"Stop!" he said.',
        "你好，世界！",
        "A line.\n\nA paragraph.",
    ],
)
def test_words_alone_are_untouched(text):
    assert spoken_text(text) == text


@pytest.mark.parametrize("part", ["1,", "a.", "a@", "1-", "$", "1:", "a/", "Mr. ", "_a"])
def test_time_grows_with_the_text_alone(part):
    start = time.perf_counter()
    spoken_text(clean_text(part * 2_000))
    assert time.perf_counter() - start < 20  # quadratic time takes minutes


def test_any_text_is_read():
    rng = random.Random(0)
    for _ in range(40):
        characters = (rng.choice("abc XYZ 0123456789.,:/-$%&*_#`()[]\n\t'\"°½漢") for _ in range(rng.randint(1, 300)))
        assert isinstance(spoken_text(clean_text("".join(characters))), str)
