"""STFT and mel spectrogram against the reference's goldens; both transforms agree."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from spark_jax.audio import mel, stft
from spark_jax.config import MelConfig
from spark_jax.errors import SparkError

GOLDEN = load_file(pathlib.Path(__file__).parents[1] / "assets" / "audio" / "golden.safetensors")


def close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_window_and_filters():
    np.testing.assert_allclose(stft.hann_window(640), GOLDEN["mel/window"], rtol=0, atol=2e-7)
    filters = mel.mel_filterbank(16_000, 1024, 128, 10.0, 8000.0)
    # torch computes the filters in float32.
    close(filters, GOLDEN["mel128/fb"], 2e-5)


def test_magnitudes_and_mel_spectrograms():
    samples = jnp.asarray(GOLDEN["mel/in"])
    magnitude = jnp.abs(stft.stft(samples, 1024, 320, 640))
    close(magnitude, GOLDEN["mel/stft_mag"].transpose(0, 2, 1))
    for num_mels in (128, 32):
        output = jax.jit(mel.mel_spectrogram, static_argnums=1)(samples, MelConfig(num_mels=num_mels))
        close(output, GOLDEN[f"mel{num_mels}/out"].transpose(0, 2, 1))


def direct_stft(samples, n_fft, hop, window_length):
    """Frame by frame in float64."""
    window = np.zeros(n_fft)
    left = (n_fft - window_length) // 2
    angle = 2 * np.pi * np.arange(window_length) / window_length
    window[left : left + window_length] = 0.5 - 0.5 * np.cos(angle)
    padded = np.pad(samples, n_fft // 2, mode="reflect")
    starts = range(0, len(padded) - n_fft + 1, hop)
    return np.stack([np.fft.rfft(padded[start : start + n_fft] * window) for start in starts])


# Windows that are and are not multiples of the hop; transform sizes above the window, and odd lengths.
SIZES = [(32, 8, 32), (2048, 512, 1200), (512, 128, 300), (1024, 320, 640)]


@pytest.mark.parametrize(("n_fft", "hop", "window"), SIZES)
def test_stft_equals_the_direct_one(n_fft, hop, window):
    samples = np.random.default_rng(0).normal(size=(2, 2551)).astype(np.float32)
    output = stft.stft(jnp.asarray(samples), n_fft, hop, window)
    assert output.shape == (2, 2551 // hop + 1, n_fft // 2 + 1)
    for item, expected in zip(output, samples, strict=True):
        close(item, direct_stft(expected.astype(np.float64), n_fft, hop, window), 2e-6)


@pytest.mark.parametrize(("n_fft", "window"), [(64, 64), (1024, 640), (512, 300)])
def test_the_product_of_accelerators_equals_the_fast_transform(n_fft, window):
    framed = np.random.default_rng(0).normal(size=(1, 3, window)).astype(np.float32)
    left = (n_fft - window) // 2
    close(stft._transform_product(framed, n_fft, left), stft._transform_fast(framed, n_fft, left), 2e-6)


def test_gradient_equals_finite_differences_and_is_finite_in_silence():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(1, 300))

    @jax.jit
    def loss(samples):
        return jnp.sum(jnp.abs(stft.stft(samples, 128, 32, 100)) ** 2)

    direction = rng.normal(size=(1, 300))
    step = 1e-2  # the loss is quadratic: central differences are exact
    numeric = (loss(samples + step * direction) - loss(samples - step * direction)) / (2 * step)
    gradient = jax.jit(jax.grad(loss))(samples.astype(np.float32))
    np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=1e-3)
    silent = jax.jit(jax.grad(lambda x: jnp.sum(jnp.abs(stft.stft(x, 128, 32, 100)))))(jnp.zeros((1, 300)))
    assert np.all(np.isfinite(silent))


def test_too_short_audio_is_an_error():
    assert mel.mel_spectrogram(jnp.zeros((1, 513)), MelConfig()).shape == (1, 2, 128)
    with pytest.raises(SparkError, match="512 samples are too few"):
        mel.mel_spectrogram(jnp.zeros((1, 512)), MelConfig())
