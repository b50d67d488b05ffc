import numpy as np
import pytest

from spark_jax.data.pitch_tracks import PitchTracks, fill_unvoiced, pitch_fields
from spark_jax.errors import SparkError


def test_a_record_says_where_its_track_is(tmp_path):
    np.save(tmp_path / "f0.npy", np.array([0, 1000, 1234, 0, 2000], np.uint16))
    tracks = PitchTracks(tmp_path)
    track = tracks.read({"index": "a", "f0_start": 1, "f0_frames": 3})
    assert track.dtype == np.float32
    np.testing.assert_allclose(track, [100.0, 123.4, 0.0], rtol=1e-6)
    for fields in ({}, {"f0_start": 3, "f0_frames": 3}, {"f0_start": -1, "f0_frames": 1}, {"f0_start": 0.0}):
        with pytest.raises(SparkError, match="a has f0_start .* expected a place within 5 values"):
            tracks.read({"index": "a", **fields})


def test_files_that_hold_no_tracks_are_named(tmp_path):
    with pytest.raises(SparkError, match="f0.npy: cannot be read"):
        PitchTracks(tmp_path)
    (tmp_path / "f0.npy").write_bytes(b"no array")
    with pytest.raises(SparkError, match="f0.npy: cannot be read"):
        PitchTracks(tmp_path)
    np.save(tmp_path / "f0.npy", np.zeros((2, 2), np.int64))
    with pytest.raises(SparkError, match=r"f0.npy: holds int64 \[2, 2\], expected uint16"):
        PitchTracks(tmp_path)


def test_unvoiced_frames_lie_between_their_neighbors_in_the_logarithm():
    filled = fill_unvoiced(np.array([0, 100, 0, 400, 0, 0], np.float32))
    np.testing.assert_allclose(filled, [100, 100, 200, 400, 400, 400], rtol=1e-6)
    np.testing.assert_array_equal(fill_unvoiced(np.zeros(3, np.float32)), np.full(3, 150, np.float32))


def test_a_segment_is_filled_from_outside_of_it_and_has_the_utterance_s_mean():
    track = np.array([0, 100, 0, 0, 400, 0], np.float32)
    fields = pitch_fields(track, 2, 2)
    np.testing.assert_array_equal(fields["f0"], [0, 0])
    np.testing.assert_allclose(fields["f0_filled"], [100 * 4 ** (1 / 3), 100 * 4 ** (2 / 3)], rtol=1e-5)
    assert fields["f0_mean"] == pytest.approx(200, rel=1e-6)
    beyond = pitch_fields(track, 4, 4)
    np.testing.assert_array_equal(beyond["f0"], [400, 0, 0, 0])
    np.testing.assert_allclose(beyond["f0_filled"], [400] * 4)
    assert pitch_fields(np.zeros(3, np.float32), 0, 3)["f0_mean"] == 0
    assert pitch_fields(np.zeros(3, np.float32), 0, 3)["f0_filled"].min() > 0
