"""Judges of the signal on signals whose truth is known."""

import numpy as np
import pytest

from spark_jax.evaluation.judges.base import SAMPLE_RATE, Judge, Utterance
from spark_jax.evaluation.judges.pitch import compare_pitch
from spark_jax.evaluation.judges.signal import SignalJudge, self_correlation, speech_span


def sine(hz, seconds=1.0, level=0.3):
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)


def noise(seconds=1.0, seed=0):
    return np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))


def buzz(hz, seconds=1.0):
    return sum(sine(hz * k, seconds, 0.2 / k) for k in range(1, 11))


@pytest.mark.parametrize(
    ("samples", "lag", "expected"),
    [
        (np.tile(noise(0.02), 50), 0.02, 1.0),  # a codec that repeats every token
        (np.tile(noise(0.02), 50), 0.013, 0.0),
        (noise(), 0.02, 0.0),
        (sine(100.0), 0.02, 1.0),
        (sine(125.0), 0.02, -1.0),  # two and a half periods: the opposite
        (sine(112.5), 0.02, 0.0),  # two and a quarter
    ],
    ids=["repeats", "another lag", "noise", "whole periods", "half a period", "quarter"],
)
def test_self_correlation(samples, lag, expected):
    assert self_correlation(samples, SAMPLE_RATE, lag) == pytest.approx(expected, abs=0.12)


def test_self_correlation_of_nothing_is_not_told():
    assert self_correlation(np.zeros(16000), SAMPLE_RATE, 0.02) is None
    assert self_correlation(noise(0.05), SAMPLE_RATE, 0.02) is None


def test_speech_is_timed_without_silence_at_both_ends():
    samples = np.concatenate([np.zeros(8000), sine(200.0, 2.0), np.zeros(16000)])
    assert speech_span(samples, SAMPLE_RATE) == (8000, 40000)
    assert speech_span(np.zeros(1000), SAMPLE_RATE) == (0, 0)
    found = SignalJudge().judge(Utterance(samples, "Nobody knew it."))
    assert found["speech_seconds"] == 2.0 and found["syllables_per_second"] == 2.5  # five of them


def test_tracks_of_pitch_are_compared_frame_by_frame():
    target = np.array([0.0] * 10 + [100.0, 110.0] * 20)
    same = compare_pitch(target, target)
    assert (same["voicing_agreement"], same["f0_correlation"], same["f0_median_error"]) == (1.0, 1.0, 0.0)
    octave = compare_pitch(2 * target, target)
    assert octave["f0_median_error"] == pytest.approx(12.0) and octave["f0_gross_errors"] == 1.0
    unvoiced = compare_pitch(np.zeros(50), target)
    assert unvoiced["voicing_agreement"] == 0.2 and unvoiced["f0_correlation"] is None


@pytest.fixture(scope="module")
def pitch_judge():
    pytest.importorskip("parselmouth", reason="needs the extra evaluation")
    from spark_jax.evaluation.judges.pitch import PitchJudge

    judge = PitchJudge()
    assert isinstance(judge, Judge) and "parselmouth" in judge.version
    return judge


@pytest.mark.parametrize("hz", [90.0, 220.0])
def test_pitch_of_a_tone(pitch_judge, hz):
    found = pitch_judge.judge(Utterance(buzz(hz), target=buzz(hz * 2 ** (3 / 12))))
    assert found["f0"] == pytest.approx(hz, rel=0.01) and found["voiced"] > 0.9
    assert found["f0_median_error"] == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize("snr", [5.0, 15.0, 25.0])
def test_harmonics_to_noise_ratio_is_that_of_the_noise(pitch_judge, snr):
    tone = buzz(150.0, 2.0)
    white = noise(2.0)
    white *= np.sqrt(np.mean(tone**2) / np.mean(white**2)) * 10 ** (-snr / 20)
    assert pitch_judge.judge(Utterance(tone + white))["hnr"] == pytest.approx(snr, abs=1.5)


def test_noise_and_silence_have_no_pitch(pitch_judge):
    found = pitch_judge.judge(Utterance(0.1 * noise()))
    assert found["voiced"] < 0.05 and found["hnr"] < 0.0
    assert pitch_judge.judge(Utterance(np.zeros(16000))) == {"f0": None, "voiced": 0.0, "hnr": None}


def test_gender_of_vowels(pitch_judge):
    """Buzzes through the formants of a vowel, of a man's and of a woman's size."""
    import scipy.signal

    from spark_jax.evaluation.judges.gender import GenderJudge

    judge = GenderJudge()
    for gender, f0, scale in (("male", 110.0, 1.0), ("female", 215.0, 1.17)):
        wave = np.zeros(SAMPLE_RATE)
        wave[:: round(SAMPLE_RATE / f0)] = 1.0
        for formant, width in ((500, 60), (1500, 90), (2500, 120), (3500, 175)):
            radius = np.exp(-np.pi * width / SAMPLE_RATE)
            angle = 2 * np.pi * formant * scale / SAMPLE_RATE
            wave = scipy.signal.lfilter([1.0], [1.0, -2 * radius * np.cos(angle), radius**2], wave)
        found = judge.judge(Utterance(0.3 * wave / np.abs(wave).max()))
        assert found["gender"] == gender
    assert judge.judge(Utterance(0.1 * noise())) == {"gender": None, "male": None}
