import sys

import pytest

from spark_jax.errors import SparkError
from spark_jax.evaluation import metrics


def test_counts_are_over_all_words_after_normalization():
    pytest.importorskip("jiwer", reason="needs the extra evaluation")
    pytest.importorskip("whisper_normalizer", reason="needs the extra evaluation")
    references = ["The color of it.", "He doesn't see twenty-two birds!", "A tree."]
    hypotheses = ["the color of it", "he does not see 22 bird", ""]
    measured = metrics.word_errors(references, hypotheses)
    assert measured.sentences == 3
    assert (measured.substitutions, measured.deletions, measured.insertions) == (1, 2, 0)
    assert measured.rate == measured.errors / measured.words == 3 / measured.words
    assert measured.words == len(" ".join(map(metrics.normalize_text, references)).split())


def test_an_insertion_counts_against_the_words_of_the_reference():
    pytest.importorskip("jiwer", reason="needs the extra evaluation")
    pytest.importorskip("whisper_normalizer", reason="needs the extra evaluation")
    assert metrics.word_errors(["one bird"], ["no one saw one bird"]).insertions == 3
    assert metrics.word_errors(["one bird"], ["no one saw one bird"]).rate == 1.5


@pytest.mark.parametrize(
    ("references", "hypotheses", "named"),
    [(["a"], ["a", "b"], "2 hypotheses"), ([], [], "at least one"), (["..."], ["a"], "'...'")],
)
def test_sentences_that_cannot_be_counted_are_named(references, hypotheses, named):
    pytest.importorskip("jiwer", reason="needs the extra evaluation")
    pytest.importorskip("whisper_normalizer", reason="needs the extra evaluation")
    with pytest.raises(SparkError, match=named):
        metrics.word_errors(references, hypotheses)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(SparkError, match=r"jiwer.*spark-jax\[evaluation\]"):
        metrics.word_errors(["a"], ["a"])
