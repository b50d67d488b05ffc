"""Frame labels from an alignment, and the vocabulary of characters."""

import numpy as np
import pytest

from spark_jax.data import speech
from spark_jax.errors import SparkError


def test_frame_labels_follow_the_bounds():
    # Frames see 0–25, 20–45, 40–65, … ms: their middles are 12.5, 32.5, 52.5, 72.5, 92.5, 112.5 ms.
    labels = speech.frame_labels([0.03, 0.06, 0.1], [7, 9], frames=6)
    np.testing.assert_array_equal(labels, [0, 7, 7, 9, 9, 0])


def test_vocabulary_survives_its_file(tmp_path):
    vocabulary = speech.Vocabulary.of(["ba", "cˈa"])
    assert vocabulary.encode("abc?") == [1, 2, 3]
    vocabulary.save(tmp_path / "vocabulary.json")
    assert speech.Vocabulary.load(tmp_path / "vocabulary.json").symbols == vocabulary.symbols
    assert vocabulary.decode([2, 1]) == "ba"
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SparkError, match="broken.json"):
        speech.Vocabulary.load(tmp_path / "broken.json")
