import numpy as np
import pytest
from transfer_bounds import spectral_features, transfer_bounds, warping_path
from world_speech import FRAME_SECONDS, Speech, warp_envelope

RATE, BINS = 24_000, 513
PEAKS = (60, 20, 45, 30, 12)  # bins of the resonance of each sound


def speech(durations, formant=1.0, rate=RATE, bins=BINS):
    """An utterance of silence, sounds whose resonance glides from one height to another, and silence.

    Args:
      durations: frames of each.
    """
    frequencies, rows = np.linspace(0, rate / 2, bins), []
    for sound, frames in enumerate(durations):
        for part in (np.arange(frames) + 0.5) / frames:
            if sound in (0, len(durations) - 1):
                rows.append(np.full(bins, 1e-8 * (1 + part)))
            else:
                center = PEAKS[sound - 1] * (1 + 0.4 * (part - 0.5)) * RATE / 2 / (BINS - 1)
                rows.append(1.0 / (1.0 + ((frequencies - center) / 150.0) ** 2) + 1e-4)
    envelope = np.array(rows)
    envelope = envelope if formant == 1.0 else warp_envelope(envelope, formant)
    return Speech(np.zeros(1), rate, np.zeros(len(envelope)), envelope, np.zeros_like(envelope))


def test_the_path_goes_through_both_from_end_to_end():
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((7, 3)), rng.standard_normal((11, 3))
    first, second = warping_path(ours, theirs)
    assert (first[0], second[0], first[-1], second[-1]) == (0, 0, 6, 10)
    steps = np.stack([np.diff(first), np.diff(second)])
    assert steps.min() >= 0 and steps.max() == 1 and np.all(steps.sum(axis=0) >= 1)
    first, second = warping_path(ours, ours)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("formant", "rate", "bins"), [(1.0, RATE, BINS), (0.84, RATE, BINS), (1.0, 16_000, 513)])
def test_bounds_follow_the_sounds_into_another_rhythm_voice_and_sample_rate(formant, rate, bins):
    known, other = (30, 20, 24, 30, 16, 40, 30), (40, 36, 16, 44, 30, 30, 24)
    times = np.cumsum(known)[:-1] * FRAME_SECONDS
    moved = transfer_bounds(list(times), speech(known), speech(other, formant, rate, bins), formant)
    np.testing.assert_allclose(moved, np.cumsum(other)[:-1] * FRAME_SECONDS, atol=0.021)
    assert moved == sorted(moved)


def test_features_have_no_scale_and_no_mean():
    features = spectral_features(speech((30, 20, 24, 30, 16, 40, 30)))
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(features.std(axis=0)[:-1], 1, atol=1e-3)
