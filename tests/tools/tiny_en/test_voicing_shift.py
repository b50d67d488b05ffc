import numpy as np
import pytest
from voicing_shift import expected_voicing, settle_bounds, voicing_shift


def test_a_stress_mark_is_as_voiced_as_what_follows_it():
    np.testing.assert_array_equal(expected_voicing("ˈæp ˌs."), [1, 1, 0, np.nan, 0, 0, np.nan])
    np.testing.assert_array_equal(expected_voicing("ˈ"), [np.nan])


def test_late_times_are_moved_to_where_the_pitch_is():
    phonemes, truth = "pæsəti", [0.1, 0.2, 0.35, 0.5, 0.6, 0.7, 0.9]
    times = np.arange(200) * 0.005
    place = np.searchsorted(truth, times, side="right") - 1
    voiced = np.isin(place, [1, 3, 5])
    for late in (-0.05, 0.0, 0.035, 0.12):
        planned = np.array(truth) + late
        assert voicing_shift(planned, phonemes, voiced, 0.005) == pytest.approx(-late, abs=0.01)
        np.testing.assert_allclose(settle_bounds(list(planned), phonemes, voiced, 0.005), truth, atol=0.011)


def test_nothing_is_moved_where_nothing_says_and_nothing_before_the_beginning():
    assert voicing_shift(np.array([0.1, 0.2]), ".", np.zeros(0, bool), 0.005) == 0.0
    early = settle_bounds([0.01, 0.1, 0.3], "sæ", np.arange(60) >= 2, 0.005)
    assert early[0] == 0.0 and early == sorted(early)
