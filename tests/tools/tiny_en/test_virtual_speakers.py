import numpy as np
from virtual_speakers import (
    DURATIONS,
    FEMALE,
    FORMANTS,
    HELD_OUT,
    MALE,
    NAMED,
    PITCHES,
    SLOW_DURATIONS,
    is_near_held_out,
    random_duration,
    random_speaker,
)

from spark_jax.text.attributes import pitch_level


def test_sixteen_named_speakers_keep_away_from_the_held_out_ones():
    assert len(NAMED) == 16 and len(HELD_OUT) == 12 and not NAMED.keys() & HELD_OUT.keys()
    for speaker in NAMED.values():
        assert not is_near_held_out(speaker.formant, speaker.pitch)
    for speaker in (*NAMED.values(), *HELD_OUT.values()):
        low, high = FORMANTS[speaker.gender]
        assert low <= speaker.formant <= high
        low, high = PITCHES[speaker.gender]
        assert low <= speaker.pitch <= high


def test_random_speakers_are_of_their_gender_and_never_near_a_held_out_one():
    rng = np.random.default_rng(0)
    for gender in (FEMALE, MALE):
        speakers = [random_speaker(rng, "x", gender) for _ in range(2000)]
        assert not any(is_near_held_out(speaker.formant, speaker.pitch) for speaker in speakers)
        pitches, formants = np.array([(s.pitch, s.formant) for s in speakers]).T
        assert pitches.min() >= PITCHES[gender][0] and pitches.max() <= PITCHES[gender][1]
        assert formants.min() >= FORMANTS[gender][0] and formants.max() <= FORMANTS[gender][1]
        assert {pitch_level(pitch, gender) for pitch in pitches} == {0, 1, 2, 3, 4}
    assert is_near_held_out(HELD_OUT["held-m0"].formant * 1.019, HELD_OUT["held-m0"].pitch * 1.05)
    assert not is_near_held_out(HELD_OUT["held-m0"].formant * 1.019, HELD_OUT["held-m0"].pitch * 1.07)


def test_a_fifth_of_durations_is_slow():
    rng = np.random.default_rng(0)
    durations = np.array([random_duration(rng) for _ in range(3000)])
    assert durations.min() >= DURATIONS[0] and durations.max() <= SLOW_DURATIONS[1]
    assert 0.17 < np.mean(durations > DURATIONS[1]) < 0.23
