import json
import re

import pytest

from spark_jax.errors import SparkError
from spark_jax.inference.long_text import Span, SpokenWord
from spark_jax.inference.subtitles import LINE, cues, write_subtitles

LONG = "The first part of this sentence is long, and so is the second part of it; and the third part ends it here."
SPANS = (Span("Hello <there> & all.", 1600, 17600), Span(LONG, 20800, 84800, tries=2))


def test_cues_follow_each_other_within_their_spans():
    found = cues(SPANS, 16000)
    assert found[0].text == SPANS[0].text and (found[0].start, found[0].end) == (0.1, 1.1)
    assert len(found) == 3 and " ".join(cue.text for cue in found[1:]) == LONG
    assert found[1].start == 1.3 and found[-1].end == pytest.approx(5.3)
    assert found[1].end == found[2].start and all(cue.start < cue.end for cue in found)
    assert all(len(cue.text) <= 2 * LINE for cue in found)


def test_cues_of_known_words_begin_with_them():
    words = [SpokenWord(word, 20800 + 100 * number, 20890 + 100 * number) for number, word in enumerate(LONG.split())]
    span = Span(LONG, 20800, 84800, words=tuple(words))
    first, second = cues([span], 16000)
    count = len(first.text.split())
    assert second.start == first.end == pytest.approx((20800 + 100 * count) / 16000)
    assert (first.start, second.end) == (1.3, 5.3)
    long_word = Span("x" * 200, 0, 16000, words=(SpokenWord("x" * 200, 100, 15000),))
    assert [(cue.start, cue.end) for cue in cues([long_word], 16000)] == [(0.0, 1.0), (1.0, 1.0), (1.0, 1.0)]


def test_subrip(tmp_path):
    write_subtitles(tmp_path / "out.srt", SPANS, 16000)
    blocks = (tmp_path / "out.srt").read_text().split("\n\n")
    assert blocks[0] == "1\n00:00:00,100 --> 00:00:01,100\nHello <there> & all."
    assert [block.split("\n")[0] for block in blocks] == ["1", "2", "3"]
    assert all(len(line) <= LINE for block in blocks for line in block.split("\n"))
    write_subtitles(tmp_path / "late.srt", (Span("Late.", 16000 * 3723, 16000 * 3724 + 8),), 16000)
    assert "01:02:03,000 --> 01:02:04,000" in (tmp_path / "late.srt").read_text()


def test_webvtt(tmp_path):
    write_subtitles(tmp_path / "out.vtt", SPANS, 16000)
    text = (tmp_path / "out.vtt").read_text()
    assert text.startswith("WEBVTT\n\n1\n00:00:00.100 --> 00:00:01.100\nHello &lt;there&gt; &amp; all.\n\n2\n")
    assert len(re.findall(r"^\d\d:\d\d:\d\d\.\d{3} --> ", text, re.MULTILINE)) == 3


def test_json_has_the_pieces(tmp_path):
    write_subtitles(tmp_path / "out.json", SPANS, 16000)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found[0] == {"text": SPANS[0].text, "start": 0.1, "end": 1.1, "tries": 1}
    assert found[1]["text"] == LONG and found[1]["tries"] == 2
    write_subtitles(tmp_path / "out.json", [Span("Hi you.", 0, 16000, words=(SpokenWord("Hi", 160, 800),))], 16000)
    assert json.loads((tmp_path / "out.json").read_text())[0]["words"] == [{"text": "Hi", "start": 0.01, "end": 0.05}]


def test_another_extension_is_refused(tmp_path):
    with pytest.raises(SparkError, match=r"out\.txt: expected the name of a file that ends with \.srt, \.vtt, \.json"):
        write_subtitles(tmp_path / "out.txt", SPANS, 16000)
    assert not list(tmp_path.iterdir())
