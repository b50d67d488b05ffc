"""The audio front end against the reference's goldens, and bad input."""

import pathlib

import numpy as np
import pytest
import scipy.signal
import soundfile
from safetensors.numpy import load_file

from spark_jax.audio import load, normalize
from spark_jax.errors import SparkError

ASSETS = pathlib.Path(__file__).parents[1] / "assets" / "audio"
GOLDEN = load_file(ASSETS / "golden.safetensors")
VOLUME_CASES = sorted({key.split("/")[1] for key in GOLDEN if key.startswith("volnorm/")})


def test_load_takes_the_first_channel_and_resamples():
    samples = load.load_audio(ASSETS / "stereo_24k.wav", 24_000)
    np.testing.assert_array_equal(samples, GOLDEN["load/raw_stereo_24k"][:, 0])
    samples = load.load_audio(ASSETS / "stereo_24k.wav", 16_000)
    assert samples.dtype == np.float64
    np.testing.assert_allclose(samples, GOLDEN["load/resampled_16k"], rtol=0, atol=1e-12)
    normalized = normalize.volume_normalize(samples)
    np.testing.assert_allclose(normalized, GOLDEN["load/resampled_16k_volnorm"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", VOLUME_CASES)
def test_volume_normalize(case):
    output = normalize.volume_normalize(GOLDEN[f"volnorm/{case}/in"])
    np.testing.assert_allclose(output, GOLDEN[f"volnorm/{case}/out"], rtol=1e-14, atol=0)


@pytest.mark.parametrize("length", [300, 800, 1600, 1601, 5000])
def test_reference_clip(length):
    clip = normalize.reference_clip(np.arange(length, dtype=np.float64), 1600)
    np.testing.assert_array_equal(clip, GOLDEN[f"refclip/n{length}"])


def test_highpass_is_the_biquad_of_quality_0707():
    # The textbook biquad (RBJ cookbook), which the reference's training data passes through.
    angle = 2 * np.pi * 40 / 16_000
    alpha, cosine = np.sin(angle) / (2 * np.sqrt(0.5)), np.cos(angle)
    numerator = np.array([(1 + cosine) / 2, -1 - cosine, (1 + cosine) / 2])
    denominator = np.array([1 + alpha, -2 * cosine, 1 - alpha])
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 4000)
    expected = scipy.signal.lfilter(numerator, denominator, samples)
    np.testing.assert_allclose(normalize.highpass(samples, 16_000), expected, atol=1e-10)
    assert normalize.highpass(samples.astype(np.float32), 16_000).dtype == np.float32
    assert np.abs(normalize.highpass(np.ones(16_000), 16_000)[-1000:]).max() < 1e-6  # no constant passes


def bad_file(tmp_path, kind):
    path = tmp_path / f"{kind}.wav"
    if kind == "text":
        path.write_text("no audio at all")
    elif kind == "truncated":
        path.write_bytes((ASSETS / "stereo_24k.wav").read_bytes()[:20])
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        samples = {"empty": np.zeros(0), "nan": np.array([0.0, np.nan]), "inf": np.array([np.inf, 0.0])}[kind]
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such"),
        ("folder", "no such"),
        ("text", "as audio"),
        ("truncated", "as audio"),
        ("empty", "empty"),
        ("nan", "NaN"),
        ("inf", "infinite"),
    ],
)
def test_bad_files(tmp_path, kind, words):
    path = bad_file(tmp_path, kind)
    with pytest.raises(SparkError, match=words) as caught:
        load.load_audio(path, 16_000)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_check_reference():
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 1600)
    load.check_reference(noise, "ref.wav", 16_000)
    for samples, words in (
        (noise[:1599], "at least 0.1 s"),
        (noise * 0, "silent"),
        (noise * 1e-4, "silent"),
        (np.where(noise > 0.09, np.nan, noise), "NaN"),
        (noise[None], "one channel"),
    ):
        with pytest.raises(SparkError, match=f"ref.wav: .*{words}"):
            load.check_reference(samples, "ref.wav", 16_000)
