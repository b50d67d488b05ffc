import numpy as np
import pytest
from code_statistics import code_statistics


def frames_of(ids):
    """Code 0 is unvoiced, codes 1 and 2 are two semitones apart; the last frame of each row is padding."""
    f0 = np.where(ids == 0, 0.0, 100.0 * 2 ** (ids / 6)).astype(np.float32)
    mask = np.ones(ids.shape, bool)
    mask[:, -1] = False
    return {"f0": f0, "mask": mask}


def test_codes_that_tell_everything():
    ids = np.tile([0, 1, 2], (6, 7))
    found = code_statistics(ids, frames_of(ids), ids, frames_of(ids), codes=3)
    assert found["voicing_accuracy"] == 1 and found["f0_r2"] == pytest.approx(1, abs=1e-3)
    assert found["next_nats"] < 0.03 and found["perplexity"] == pytest.approx(3, rel=0.01)


def test_codes_that_tell_nothing():
    rng = np.random.default_rng(0)
    said, other = rng.integers(0, 3, (2, 60, 80))
    ids, other_ids = rng.integers(0, 4, (2, 60, 80))
    found = code_statistics(ids, frames_of(said), other_ids, frames_of(other), codes=4)
    assert abs(found["f0_r2"]) < 0.02
    assert found["voicing_accuracy"] == pytest.approx(2 / 3, abs=0.02)
    assert found["next_nats"] == pytest.approx(np.log(4), abs=0.01)


def test_padding_counts_nowhere():
    ids = np.tile([0, 1, 2], (6, 7))
    padded = np.pad(ids[:, :-1], ((0, 0), (0, 5)), constant_values=2)
    frames = frames_of(ids)
    wide = {
        "f0": np.pad(frames["f0"][:, :-1], ((0, 0), (0, 5)), constant_values=50.0),
        "mask": np.pad(frames["mask"][:, :-1], ((0, 0), (0, 5))),
    }
    assert code_statistics(ids, frames, ids, frames, 3) == code_statistics(padded, wide, padded, wide, 3)
