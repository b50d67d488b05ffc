"""Words found in the scores of a recognizer: planted ones exactly, and the best of all paths."""

import itertools

import numpy as np
import pytest

from spark_jax.wav2vec2.alignment import align_words


def scores_of(path, labels=5, sure=0.9):
    """Scores of a recognizer that hears one label in each frame, and is nearly sure."""
    scores = np.full((len(path), labels), np.log((1 - sure) / (labels - 1)))
    scores[np.arange(len(path)), path] = np.log(sure)
    return scores


def test_words_are_found_where_they_are_said():
    #       pause   word 1         pause  word 2   pause
    path = [0, 4, 4, 1, 1, 0, 2, 2, 4, 0, 3, 3, 0, 3, 0, 0]
    assert align_words(scores_of(path), [[1, 2], [3, 3]], [4]) == [(3, 8), (10, 14)]
    # Without a pause between them, and with labels that hold as long as they are heard.
    assert align_words(scores_of([1, 1, 2, 3, 3, 1]), [[1, 2], [3, 1]]) == [(0, 3), (3, 6)]


def test_an_unknown_word_lies_between_its_neighbors():
    path = [0, 1, 1, 4, 0, 2, 2, 3, 4, 0, 1, 3, 3, 0]
    assert align_words(scores_of(path), [[1], [], [1, 3]], [4]) == [(1, 3), (5, 8), (10, 13)]
    assert align_words(scores_of(path), [[], [1, 3]], [4])[1] == (10, 13)


def test_there_must_be_room():
    assert align_words(scores_of([1, 2]), [[1, 2], [3]]) is None
    assert align_words(scores_of([1, 1]), [[1, 1]]) is None  # equal labels have a rest between them
    assert align_words(scores_of([1, 0, 1]), [[1, 1]]) == [(0, 3)]
    assert align_words(np.zeros((0, 5)), [[1]]) is None


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_best_of_all_paths(seed):
    scores = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), 7))

    def runs(path):
        ends = itertools.accumulate(len(list(group)) for _, group in itertools.groupby(path))
        edges = itertools.pairwise([0, *ends])
        return [(path[first], first, last) for first, last in edges if path[first]]

    fitting = [path for path in itertools.product(range(3), repeat=7) if [run[0] for run in runs(path)] == [1, 2, 2]]
    best = max(fitting, key=lambda path: sum(scores[range(7), path]))
    (_, first, _), (_, _, last), (_, *second) = runs(best)
    assert align_words(scores, [[1, 2], [2]]) == [(first, last), tuple(second)]
