import numpy as np
import pytest
import world_speech
from virtual_speakers import VirtualSpeaker

RATE = 24_000


def test_a_contour_is_moved_in_the_logarithm_and_stays_unvoiced():
    contour = np.array([0.0, 100.0, 200.0, 0.0, 400.0])
    moved = world_speech.move_pitch(contour, 100.0, 0.5)
    np.testing.assert_allclose(moved, [0.0, 100 / np.sqrt(2), 100.0, 0.0, 100 * np.sqrt(2)])
    assert world_speech.move_pitch(contour, 400.0, 1.5).max() == world_speech.PITCH_LIMITS[1]
    np.testing.assert_array_equal(world_speech.move_pitch(np.zeros(3), 100.0, 1.0), np.zeros(3))


def test_a_warped_envelope_has_its_peaks_elsewhere():
    bins = np.arange(513)
    envelope = np.exp(-(((bins - 200) / 10.0) ** 2))[None] + 1e-6
    for factor in (0.8, 1.0, 1.2):
        assert np.argmax(world_speech.warp_envelope(envelope, factor)) == round(200 * factor)
    np.testing.assert_allclose(world_speech.warp_envelope(envelope, 1.0), envelope, rtol=1e-9)


def test_a_tilt_is_in_decibels_an_octave():
    gain = world_speech.tilt_gain(12_001, RATE, -2.0)
    decibels = 10 * np.log10(gain)
    assert decibels[500] == pytest.approx(0) and decibels[4000] == pytest.approx(-6)
    assert decibels[0] == decibels[100] == pytest.approx(2 * np.log2(5))


@pytest.fixture(scope="module")
def vowel():
    """Half a second of glottal pulses at a gliding pitch through one resonance at 1 kHz, with silence around."""
    time = np.arange(RATE // 2) / RATE
    f0 = 190 + 20 * np.sin(2 * np.pi * 3 * time)
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    harmonics = np.arange(1, 50)[:, None]
    gain = 1.0 / (1.0 + ((harmonics * 200.0 - 1000.0) / 150.0) ** 2) + 0.05 / harmonics
    wave = 0.2 * np.sum(gain * np.sin(harmonics * phase), axis=0) * np.hanning(len(time)) ** 0.3
    quiet = 1e-5 * np.random.default_rng(0).standard_normal(RATE // 5)
    return np.concatenate([quiet, wave, quiet])


def test_a_speaker_has_the_asked_pitch_formants_and_duration(vowel):
    pytest.importorskip("pyworld", reason="needs pyworld")
    speech = world_speech.analyze(vowel, RATE)
    speaker = VirtualSpeaker("x", "male", formant=0.8, pitch=110.0, range=0.5)
    samples, asked = world_speech.speak_as(speech, speaker, duration=1.3)
    assert len(samples) == pytest.approx(1.3 * len(vowel), rel=0.02)
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(np.sqrt(np.mean(vowel**2)), rel=1e-3)
    assert np.exp(np.mean(np.log(asked[asked > 0]))) == pytest.approx(110, rel=1e-6)
    found = world_speech.pitch_contour(samples, RATE, fundamental=True)
    assert np.exp(np.mean(np.log(found[found > 0]))) == pytest.approx(110, rel=0.01)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / RATE)
    near = (frequencies > 500) & (frequencies < 1500)
    assert np.sum(frequencies[near] * spectrum[near]) / np.sum(spectrum[near]) == pytest.approx(800, rel=0.07)


def test_the_pitch_of_speech_without_a_fundamental_is_not_its_octave(vowel):
    pytest.importorskip("parselmouth", reason="needs the extra corpus")
    time = np.arange(RATE // 2) / RATE
    wave = sum(np.sin(2 * np.pi * 90 * k * time) / k for k in range(2, 20))
    found = world_speech.pitch_contour(wave, RATE, fundamental=False)
    assert np.median(found[found > 0]) == pytest.approx(90, rel=0.01)
    assert len(found) == len(wave) // (RATE // 200) + 1
