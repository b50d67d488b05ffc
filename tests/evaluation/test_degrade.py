import numpy as np
import pytest

from spark_jax.evaluation.degrade import add_noise, add_reverberation


def test_noise_is_as_loud_as_asked():
    tone = 0.1 * np.sin(np.arange(32000) / 20)
    for snr in (20.0, 5.0):
        for color in ("white", "pink"):
            noise = add_noise(tone, snr, np.random.default_rng(0), color) - tone
            assert 10 * np.log10(np.mean(tone**2) / np.mean(noise**2)) == pytest.approx(snr, abs=1e-6)


def test_pink_noise_falls_with_the_frequency():
    noise = add_noise(np.full(65536, 1e-3), 0.0, np.random.default_rng(0)) - 1e-3
    power = np.abs(np.fft.rfft(noise)) ** 2
    assert power[100:200].mean() / power[10000:20000].mean() == pytest.approx(100.0, rel=0.3)


def test_a_room_dies_away_by_60_db_in_its_time():
    click = np.zeros(16000)
    click[1000] = 0.5
    wet = add_reverberation(click, 0.4, 16000, np.random.default_rng(0))

    def level(second):
        start = 1000 + round(second * 16000)
        return 10 * np.log10(np.mean(wet[start : start + 320] ** 2))

    assert level(0.05) - level(0.25) == pytest.approx(30.0, abs=3.0)
    assert np.argmax(np.abs(wet)) == 1000
    assert np.mean(wet**2) == pytest.approx(np.mean(click**2))


def test_the_loudest_sample_fits():
    loud = np.sign(np.sin(np.arange(8000) / 10)) * 0.99
    assert np.abs(add_noise(loud, 0.0, np.random.default_rng(0))).max() <= 1.0
