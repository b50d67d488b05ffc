"""From what people write to what prompts hold: for the embedded voice's configuration, and for the release's."""

import random

import pytest
from helpers.random_text import random_text

from spark_jax.config import RELEASE
from spark_jax.errors import SparkError
from spark_jax.inference.codec import EMBEDDED_VOICE
from spark_jax.inference.long_text import plan_pieces
from spark_jax.model_directory.layout import read_config
from spark_jax.text.reading import read_text, read_transcript
from spark_jax.text_config import TextConfig

PLAIN = "The children played in the water all day."
EMBEDDED = read_config(EMBEDDED_VOICE)
ANY = TextConfig()


def spoken(text: str, config=EMBEDDED, **options) -> list[str]:
    return [piece.text for piece in plan_pieces(read_text(text, config.text, **options), config).pieces]


# The 22 kinds of spellings that were reported, and near variants of each.
SPELLINGS = [
    PLAIN + "  ",
    "\n" + PLAIN,
    PLAIN.replace(" ", "  "),
    PLAIN.replace(" ", " \t "),
    PLAIN.replace(" ", "\t"),
    PLAIN.replace(" ", "\u00a0"),
    PLAIN.replace(" ", "\u202f"),
    PLAIN.replace(" ", "\u3000"),
    PLAIN.replace(" played", "\r\nplayed"),
    PLAIN.replace(" played", "\rplayed"),
    PLAIN.replace(" played", "\nplayed"),
    PLAIN.replace(" played", " \u2028played"),
    PLAIN + "\r\n\r\n",
    PLAIN.replace("children", "chil\u00addren"),
    PLAIN.replace("children", "chil\u200bdren"),
    PLAIN.replace("children", "chil\u200d\u2060dren"),
    "\ufeff" + PLAIN,
    PLAIN.replace("water", "wa\x07ter"),
    "\u202a" + PLAIN + "\u202c",
    "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in PLAIN),
    "".join(chr(ord(c) + 0xFEE0) if c != " " else "\u3000" for c in PLAIN),
    PLAIN.replace("children", "𝐜𝐡𝐢𝐥𝐝𝐫𝐞𝐧"),
    PLAIN.replace("children", "**children**"),
    PLAIN.replace("children", "__children__"),
    f"***{PLAIN}***",
    f"# {PLAIN}",
    f"> {PLAIN}",
    f"* {PLAIN}",
    f"- {PLAIN}",
    f"• {PLAIN}",
    f"— {PLAIN}",
    f"–{PLAIN}",
    f"{PLAIN} —",
    PLAIN.upper(),
    PLAIN.upper().rstrip("."),
    PLAIN.replace("water", "WATER"),
    PLAIN.lower(),
    PLAIN.rstrip("."),
    f"{PLAIN}..",
    PLAIN.replace(".", "。"),
    f"“{PLAIN}”",
    f"‘{PLAIN}’",
    f"«{PLAIN}»",
    f"({PLAIN})",
    PLAIN.replace(".", "!"),
]


@pytest.mark.parametrize("written", SPELLINGS)
def test_spellings_of_a_sentence_are_the_plain_one(written):
    assert spoken(written) == [PLAIN]
    assert read_text(written, EMBEDDED.text).warnings == ()


@pytest.mark.parametrize("written", ["It’s John’s dog.", "It´s John`s dog.", "It‘s Johnʼs dog.", "It＇s John′s dog."])
def test_apostrophes(written):
    assert spoken(written) == ["It's John's dog."]


@pytest.mark.parametrize(
    ("written", "pieces"),
    [
        ("Wait — what?! No!!!", ["Wait, what?", "No."]),
        ("It is (really) fine: yes; no!", ["It is, really, fine, yes, no."]),
        ("naïve café, Zoë, Straße", ["Naive cafe, Zoe, Strasse."]),
        ("NASA PAID $5 FOR 3 DOGS", ["Nasa paid five dollars for three dogs."]),
        ("Dr. Smith paid 12.50 dollars.", ["Doctor Smith paid twelve dollars and fifty cents."]),
        ("# Title\n\nText.\n\n* one\n* two", ["Title.", "Text.", "One.", "Two."]),
        ("| a | b |\n|---|---|\n| c | d |", ["A, b.", "C, d."]),
        ("One. ... Two. ♪", ["One.", "Two."]),
    ],
)
def test_sentences_of_the_embedded_voice(written, pieces):
    assert spoken(written) == pieces


@pytest.mark.parametrize(
    "text", ["...", "?", "😀", "\u200b", " \n", "—", "***", "[pause 1s]", "<speak></speak>", "♪ (!)"]
)
@pytest.mark.parametrize("config", [EMBEDDED, RELEASE], ids=["embedded", "release"])
def test_nothing_to_say(text, config):
    with pytest.raises(SparkError, match="expected something to say") as error:
        read_text(text, config.text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("He said 你好 to us.", "the model speaks en, not zh, and does not know '你', '好': left out"),
        ("Hello Иван.", "the model does not know 'И', 'в', 'а', 'н': left out"),
        ("Smile 😀 and sing ♪!", "the model does not know '😀', '♪': left out"),
        ("Hello абвгдежзик.", "does not know 'а', 'б', 'в', 'г', 'д', 'е', 'ж', 'з' and 2 more: left out"),
        ("<prosody rate='x'>Hi</prosody> <b>you</b>", "tags are not read: <prosody>, <b>"),
    ],
)
def test_one_warning_names_what_the_model_does_not_know(text, warning):
    [message] = read_text(text, EMBEDDED.text).warnings
    assert warning in message


def test_a_text_of_which_nothing_is_known_says_why():
    with pytest.raises(
        SparkError, match=r"something to say; the model speaks en, not zh, and does not know '你', '好'"
    ):
        read_text("你好！", EMBEDDED.text)


@pytest.mark.parametrize("normalize", ["auto", "off"])
@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "“Hello,” she said — it’s 5 o’clock…",
        "你好，世界！“引号”——真的：（好）；ＡＢＣ１２３、％",
        "Dr. Smith paid $12.50 in 1987 for 50 % of it.",
        "ALL IN CAPITALS!",
        "x² + y² = z², №5, ½ cup",
        "2*3*4, snake_case, a < b and c > d",
        "no full stop",
        "<|im_end|>",
    ],
)
def test_the_release_gets_text_as_it_is(text, normalize):
    """It was trained on raw text: its ids are those of the reference."""
    assert spoken(text, RELEASE, normalize=normalize) == [text]
    assert read_transcript(text, RELEASE.text, normalize) == text


def test_normalization_is_a_choice():
    text = "It’s $5"
    assert spoken(text, RELEASE, normalize="on") == ["It's five dollars."]
    assert spoken("价格是12.5元", RELEASE, normalize="on") == ["价格是十二点五元。"]
    reading = read_text("In 1987.", EMBEDDED.text, normalize="off")
    assert reading.stretches[0].text == "In."
    assert "'1', '9', '8', '7'" in reading.warnings[0]


def test_a_model_without_chinese_reads_numbers_in_english():
    assert spoken("5 apples 苹果") == ["Five apples."]


def test_pauses():
    plan = plan_pieces(
        read_text("[pause 1s]One.[pause 2s] [pause 0.5s]Two. Three.[pause 9s]...[pause 9s]", EMBEDDED.text), EMBEDDED
    )
    assert plan.lead == 1.0
    assert [(piece.text, piece.pause) for piece in plan.pieces] == [("One.", 2.5), ("Two.", 0.2), ("Three.", 10.0)]


def test_transcripts_are_read_as_texts_are():
    assert read_transcript("It’s  5\nkg [pause 1s] **now**.", EMBEDDED.text) == "It's five kilograms now."
    assert read_transcript("It’s  so. ", ANY) == "It’s so. "
    with pytest.raises(SparkError, match=r"transcript is '\.\.\.', expected what the reference says"):
        read_transcript("...", ANY)


def test_long_texts_are_not_repeated_in_messages():
    with pytest.raises(SparkError) as error:
        read_text("?" * 10_000, ANY)
    assert len(str(error.value)) < 200


@pytest.mark.extended
@pytest.mark.parametrize("config", [EMBEDDED, RELEASE], ids=["embedded", "release"])
def test_random_texts_are_read_or_refused(config):
    """All of Unicode, 300 texts: pieces within the model's length and characters, or one line."""
    rng = random.Random(14)
    known = set(EMBEDDED.text.characters)
    for _ in range(300):
        text = random_text(rng, int(10 ** rng.uniform(0, 3.3)))
        for normalize in ("auto", "off"):
            refused = None
            try:
                reading = read_text(text, config.text, normalize)
            except SparkError as error:
                refused = str(error)
            if refused is not None:
                assert "\n" not in refused and len(refused) < 400
                continue
            pieces = plan_pieces(reading, config).pieces
            assert pieces and all(piece.text == piece.text.strip() != "" for piece in pieces)
            assert all(len(warning) < 400 and "\n" not in warning for warning in reading.warnings)
            if config is EMBEDDED:
                assert all(set(piece.text) <= known and len(piece.text) <= 72 for piece in pieces)
