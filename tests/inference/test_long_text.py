import dataclasses

import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax.config import RELEASE
from spark_jax.inference.long_text import PAUSES, Piece, Plan, join_pieces, max_length, piece_seed, plan_pieces
from spark_jax.text.reading import read_text
from spark_jax.text_config import TextConfig


def with_text(**settings):
    return dataclasses.replace(RELEASE, text=TextConfig(**settings))


def plan(text, config):
    return plan_pieces(read_text(text, config.text), config)


def test_a_short_text_is_one_piece():
    assert plan("Hello. How are you? 你好。", RELEASE) == Plan((Piece("Hello. How are you? 你好。", 0.0),))


def test_pieces_and_their_pauses():
    text = "One two three. Four five six seven, eight nine ten eleven twelve.\n\nThirteen fourteen. [pause 2s] Fifteen."
    got = plan(text, with_text(max_length=20))
    assert [(piece.text, piece.pause) for piece in got.pieces] == [
        ("One two three.", PAUSES["sentence"]),
        ("Four five six seven,", PAUSES["clause"]),
        ("eight nine ten", PAUSES["word"]),
        ("eleven twelve.", PAUSES["paragraph"]),
        ("Thirteen fourteen.", 2.0),
        ("Fifteen.", 0.0),
    ]
    assert len(plan("A b. C d.", with_text()).pieces) == 1
    assert len(plan("A b. C d.", with_text(join_sentences=False)).pieces) == 2


def test_pieces_of_a_model_of_sentences_are_sentences():
    got = plan(
        "the first part of it is short, the second one is not; it ends", with_text(max_length=30, normalize=True)
    )
    assert [piece.text for piece in got.pieces] == ["The first part of it is short.", "The second one is not; it ends."]


def test_all_of_a_long_text_is_in_the_plan():
    words = [f"word{number}" for number in range(3000)]
    text = " ".join(word + "." * (number % 11 == 10) for number, word in enumerate(words))
    got = plan(text, RELEASE)
    assert " ".join(piece.text for piece in got.pieces) == text
    assert len(got.pieces) > 20 and all(len(piece.text) <= max_length(RELEASE) for piece in got.pieces)


def test_the_longest_piece_fits_the_longest_answer():
    assert max_length(RELEASE) == 600  # 60 s
    assert max_length(with_text(max_length=70)) == 70
    assert max_length(tiny()) == 409  # half of its context of 4,096
    assert max_length(dataclasses.replace(RELEASE, max_semantic_tokens=10)) == 20


def test_pieces_are_joined():
    got = Plan((Piece("One.", 0.5), Piece("Two.", 0.25)), lead=1.0)
    one, two = np.full(3, 0.5, np.float32), np.full(5, 0.25, np.float32)
    samples, spans = join_pieces(got, [one, two], 8)
    assert samples.dtype == np.float32
    assert samples.tolist() == [0.0] * 8 + [0.5] * 3 + [0.0] * 4 + [0.25] * 5 + [0.0] * 2
    assert [(span.text, span.start, span.end) for span in spans] == [("One.", 8, 11), ("Two.", 15, 20)]
    samples, spans = join_pieces(got, [one], 8)
    assert len(samples) == 15 and len(spans) == 1


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_seeds_of_pieces(seed):
    seeds = [piece_seed(seed, number) for number in range(2000)]
    assert seeds[0] == seed and len(set(seeds)) == 2000 and all(0 <= other < 2**32 for other in seeds)
