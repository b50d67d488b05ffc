import numpy as np
from pitch_track import pitch_track


def test_a_token_has_the_geometric_mean_of_its_voiced_frames():
    contour = np.array([100.0, 100.0, 400.0, 400.0, 0.0, 0.0, 0.0, 50.0, 80.0, 0.0, 80.0, 80.0])
    np.testing.assert_array_equal(pitch_track(contour, 0.005, 3), [2000, 0, 800])


def test_a_slower_utterance_has_more_tokens_of_the_same_pitch():
    contour = np.concatenate([np.zeros(40), np.full(80, 123.4), np.zeros(40)])
    for duration, tokens in ((0.85, 34), (1.0, 40), (1.6, 64)):
        track = pitch_track(contour, 0.005 * duration, tokens)
        voiced = np.flatnonzero(track)
        assert set(track[voiced]) == {1234}
        assert abs(len(voiced) - tokens / 2) <= 1 and abs(voiced[0] - tokens / 4) <= 1


def test_frames_beyond_the_last_token_count_as_its_own_and_no_voice_is_zero():
    np.testing.assert_array_equal(pitch_track(np.full(9, 100.0), 0.005, 2), [1000, 1000])
    np.testing.assert_array_equal(pitch_track(np.zeros(8), 0.005, 3), [0, 0, 0])
