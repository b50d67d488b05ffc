"""The first convolution's start values: a tone excites the filters of its frequency, whatever its phase."""

import numpy as np
import pytest

from spark_jax.wav2vec2.fourier import fourier_kernel


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 3000.0])
def test_a_tone_excites_its_filters(hertz):
    kernel = fourier_kernel(240, 64, 16_000)
    assert kernel.shape == (240, 1, 64) and kernel.dtype == np.float32
    powers = []
    for phase in (0.0, 1.0, 2.0):
        tone = np.cos(2 * np.pi * hertz * np.arange(240) / 16_000 + phase)
        cosine, sine, *negative = (tone @ kernel[:, 0]).reshape(4, 16)
        np.testing.assert_allclose(negative, [-cosine, -sine], atol=1e-5)
        powers.append(cosine**2 + sine**2)
    np.testing.assert_allclose(powers[1:], [powers[0]] * 2, atol=0.02 * powers[0].max())
    mel = np.linspace(*(2595 * np.log10(1 + np.array([80.0, 7680.0]) / 700)), 16)
    nearest = int(np.argmin(np.abs(700 * (10 ** (mel / 2595) - 1) - hertz)))
    assert abs(int(np.argmax(powers[0])) - nearest) <= 1


def test_channels_come_in_fours():
    with pytest.raises(ValueError, match="30 channels"):
        fourier_kernel(240, 30, 16_000)
