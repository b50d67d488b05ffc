import numpy as np
import pytest

from spark_jax.evaluation import statistics
from spark_jax.evaluation.statistics import estimate


def test_an_interval_holds_the_truth_and_shrinks_with_the_root_of_the_count():
    rng = np.random.default_rng(0)
    few, many = (estimate(statistics.mean, rng.normal(5.0, 1.0, count)) for count in (25, 400))
    for found in (few, many):
        assert found.low < 5.0 < found.high and found.low < found.value < found.high
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4.0, rel=0.3)
    assert many.high - many.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_several_seeds_of_a_text_do_not_pass_for_several_texts():
    values = np.repeat([1.0, 2.0, 3.0, 4.0], 10)
    texts = np.repeat(["a", "b", "c", "d"], 10)
    alone = estimate(statistics.mean, values)
    together = estimate(statistics.mean, values, units=texts)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_spread_is_that_of_the_figures_of_each_seed():
    found = estimate(statistics.mean, [1.0, 1.0, 3.0, 3.0], seeds=[0, 0, 7, 7])
    assert (found.value, found.seeds, found.spread) == (2.0, 2, pytest.approx(np.sqrt(2.0), abs=1e-4))
    assert estimate(statistics.mean, [1.0, 3.0]).spread is None


def test_the_same_results_have_the_same_interval():
    values = np.random.default_rng(1).random(50)
    assert estimate(statistics.median, values) == estimate(statistics.median, values)


def test_what_cannot_be_told_is_none():
    nothing = estimate(statistics.mean, [])
    assert (nothing.value, nothing.low, nothing.items) == (None, None, 0)
    one = estimate(statistics.mean, [2.0])
    assert (one.value, one.low) == (2.0, None)
    assert estimate(statistics.spearman, [1, 1, 1], [1, 2, 3]).value is None
    assert estimate(statistics.ratio, [0.0], [0.0]).value is None


def test_figures_of_known_pairs():
    assert statistics.ratio(np.array([1, 2]), np.array([4, 6])) == 0.3
    assert statistics.spearman(np.array([1, 2, 3]), np.array([1, 8, 27])) == pytest.approx(1.0)
    assert statistics.share_of_way(np.array([0.7]), np.array([0.5]), np.array([0.9])) == pytest.approx(0.5)
    assert np.isnan(statistics.share_of_way(np.array([0.7]), np.array([0.5]), np.array([0.52])))
    counts = statistics.confusion(["a", "a", "b"], ["a", "none", "b"], ["a", "b"], ["a", "b", "none"])
    assert counts == [[1, 0, 1], [0, 1, 0]]
