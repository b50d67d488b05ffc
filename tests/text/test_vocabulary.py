import json

import pytest

from spark_jax.errors import SparkError
from spark_jax.text.vocabulary import Speller, Vocabulary


def test_a_vocabulary_is_kept(tmp_path):
    vocabulary = Vocabulary.of(["ba", "cˈ"])
    assert len(vocabulary) == 5 and vocabulary.encode("abcx") == [1, 2, 3]
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded.decode(loaded.encode("cˈab")) == "cˈab"
    with pytest.raises(SparkError, match=r"nowhere\.json"):
        Vocabulary.load(tmp_path / "nowhere.json")


def test_words_are_written_in_letters():
    speller = Speller(Vocabulary(["A", "b", "'", " ", "|", "好"]))
    assert speller.labels('"aB…"') == [1, 2] and speller.labels("A'b’s") == []
    assert speller.labels("b’a") == [2, 3, 1] and speller.labels("b-a") == [2, 1]
    assert speller.labels("好，") == [6] and speller.labels("-") == []
    assert speller.pauses == [3, 4, 5]


def test_words_are_written_by_the_lexicon(tmp_path):
    Vocabulary(["æ", "t", ",", "ˈ"]).save(tmp_path / "vocabulary.json")
    lexicon = tmp_path / "lexicon.json"
    lexicon.write_text(json.dumps({"at": "ˈæt", "tat": "tæt", "a-a": "ææ"}))
    speller = Speller.load(tmp_path)
    assert speller.labels("At,") == [4, 1, 2] and speller.labels("æt") == []
    assert speller.labels("tat-at") == [2, 1, 2, 4, 1, 2] and speller.labels("tat-is") == []
    assert speller.labels("A-a") == [1, 1]
    assert speller.pauses == [3]  # a stress mark is none
    for wrong in ("[1]", '{"at": 5}', "{"):
        lexicon.write_text(wrong)
        with pytest.raises(SparkError, match=r"lexicon\.json"):
            Speller.load(tmp_path)
