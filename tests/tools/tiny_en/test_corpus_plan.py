from collections import Counter

import pytest
from corpus_plan import OTHERS, SOURCE, split, takes
from virtual_speakers import HELD_OUT, NAMED, is_near_held_out

SENTENCES = [f"{'a' * (i % 61 + 1)} {'b' * (i // 61 + 1)}." for i in range(3000)]


@pytest.fixture(scope="module")
def planned():
    return {sentence: takes(sentence) for sentence in SENTENCES}


def test_every_sentence_is_spoken_twice_by_the_source_and_some_by_another_engine(planned):
    for found in planned.values():
        assert [take.version for take in found[:2]] == [0, 1] and {take.engine for take in found[:2]} == {SOURCE}
        assert len(found) == 2 or (found[2].version == 2 and found[2].engine in OTHERS)
    others = Counter(found[2].engine for found in planned.values() if len(found) == 3)
    assert 0.22 < others.total() / len(SENTENCES) < 0.28
    assert 0.35 < others["joe"] / others.total() < 0.45 and set(others) == set(OTHERS)


def test_kinds_have_their_shares_in_training(planned):
    own = [take for text, found in planned.items() if split(text) == "train" for take in found[:2]]
    shares = {kind: count / len(own) for kind, count in Counter(take.kind for take in own).items()}
    assert shares.keys() == {"source", "named", "random"}
    assert abs(shares["source"] - 0.15) < 0.02 and abs(shares["named"] - 0.40) < 0.02
    named = Counter(take.speaker.name for take in own if take.kind == "named")
    assert named.keys() == NAMED.keys() and min(named.values()) > 0.6 * max(named.values())
    names = [take.speaker.name for take in own if take.kind == "random"]
    assert len(set(names)) == len(names)


def test_held_out_speakers_are_heard_in_held_out_sentences_alone(planned):
    for text, found in planned.items():
        for take in found:
            held_out = take.speaker is not None and take.speaker.name in HELD_OUT
            assert held_out == (take.kind == "held_out") == (split(text) != "train" and take.version == 1)
            if take.speaker is not None and not held_out and take.engine == SOURCE:
                assert not is_near_held_out(take.speaker.formant, take.speaker.pitch)
    heard = {take.speaker.name for found in planned.values() for take in found if take.kind == "held_out"}
    assert heard == HELD_OUT.keys()


def test_a_plan_depends_on_the_words_alone():
    assert takes("He ran away.") == takes("he ran, away?")
    assert takes("He ran away.") != takes("He ran home.")
    for sentence in SENTENCES[:50]:
        assert takes(sentence, ()) == takes(sentence)[:2]
