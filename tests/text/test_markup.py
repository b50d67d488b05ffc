import time

import pytest

from spark_jax.text.markup import MAX_PAUSE, Marked, read_markup


@pytest.mark.parametrize(
    ("mark", "seconds"),
    [
        ("[pause 0.5s]", 0.5),
        ("[pause 500ms]", 0.5),
        ("[PAUSE: 1 s]", 1.0),
        ("[pause]", 0.5),
        ("[pause 2]", 2.0),
        ("[pause .25s]", 0.25),
        ('<break time="300ms"/>', 0.3),
        ("<break time='1.5s' />", 1.5),
        ('<break strength="strong"/>', 0.7),
        ("<break/>", 0.5),
        ("<break time=250ms>", 0.25),
        ("[break 1.5 seconds]", 1.5),
        ("[pause 3600s]", MAX_PAUSE),
    ],
)
def test_pauses(mark, seconds):
    assert read_markup(f"One {mark} two.") == ([Marked("One ", seconds), Marked(" two.", 0.0)], [])


def test_other_tags_are_dropped_and_named():
    text = '<speak><prosody rate="fast">Fast &amp; loud</prosody>, <sub alias="x">y</sub>.<!-- no --></speak>'
    marked, dropped = read_markup(text)
    assert [piece.text.split() for piece in marked] == [["Fast", "&", "loud,", "y."]]
    assert dropped == ["speak", "prosody", "sub"]


def test_tags_of_html_are_dropped():
    marked, dropped = read_markup("<b>Bold</b>, <a href='x' class=y>link</a><br/>new<p>Par</p>")
    assert marked == [Marked("Bold, link new\n\nPar\n\n", 0.0)]
    assert dropped == ["b", "a", "br", "p"]


@pytest.mark.parametrize("part", ["<", "<b", "<b ", "<b a=", "[pause ", "[", "<!--", "<b a='x' ", "</", "<?"])
def test_time_grows_with_the_text_alone(part):
    start = time.perf_counter()
    read_markup(part * 5_000)
    assert time.perf_counter() - start < 20  # quadratic time takes minutes


@pytest.mark.parametrize(
    "text", ["3 < 5 > 2", "a <b and c> d", "x <s and y> z", "[not a pause]", "a &amp; b", "[pause it]", "<breakfast/>"]
)
def test_what_is_no_markup_is_text(text):
    assert read_markup(text) == ([Marked(text, 0.0)], [])


def test_pauses_at_the_ends_and_one_after_the_other():
    marked, _ = read_markup("[pause 1s]Hello.[pause 1s][pause 2s]")
    assert marked == [Marked("", 1.0), Marked("Hello.", 1.0), Marked("", 2.0), Marked("", 0.0)]
