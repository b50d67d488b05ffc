"""Judges of who speaks: embeddings, whose cosine is the similarity of two voices."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spark_jax.errors import SparkError, one_line
from spark_jax.evaluation.judges.base import SAMPLE_RATE, Utterance, versions
from spark_jax.shared.extra import needs_extra

_DIGITS = 5  # of an embedding's numbers in a report


def similarity(first: Any, second: Any) -> float:
    """Returns the cosine of two embeddings."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return float(first @ second / max(np.linalg.norm(first) * np.linalg.norm(second), 1e-12))


class ResemblyzerJudge:
    """Resemblyzer's d-vectors of 256 numbers; the weights are in its wheel.

    Raises:
      SparkError: from the constructor, where the extra `evaluation-voices` is not installed.
    """

    name = "resemblyzer"

    def __init__(self):
        with needs_extra("evaluation-voices"):
            from resemblyzer import VoiceEncoder, preprocess_wav
        self._encoder, self._prepare = VoiceEncoder("cpu", verbose=False), preprocess_wav
        self.version = versions("resemblyzer", "torch")

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns the `embedding` of the parts with speech; None where there are none."""
        if not np.any(utterance.samples):
            return {"embedding": None}
        speech = self._prepare(utterance.samples.astype(np.float32), SAMPLE_RATE)
        if len(speech) < SAMPLE_RATE // 10:
            return {"embedding": None}
        return {"embedding": _as_list(self._encoder.embed_utterance(speech))}


class WavLMJudge:
    """WavLM with a head for speaker verification, in the format of transformers, on PyTorch.

    Args:
      model: a Hub id, which is downloaded, or a folder with a `WavLMForXVector`.

    Raises:
      SparkError: from the constructor, where the extra `evaluation-voices` is not installed, or there is no such model.
    """

    name = "wavlm"

    def __init__(self, model: str = "microsoft/wavlm-base-plus-sv"):
        with needs_extra("evaluation-voices"):
            import torch
            from transformers import AutoFeatureExtractor, WavLMForXVector
        self._torch = torch
        try:
            self._features = AutoFeatureExtractor.from_pretrained(model)
            self._model = WavLMForXVector.from_pretrained(model).eval()
        except Exception as error:  # of the hub, or anything in a folder
            raise SparkError(f"WavLM model {model!r} cannot be loaded: {one_line(error, 300)}") from error
        self.version = f"{versions('transformers', 'torch')}, {Path(model).name}"

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns the `embedding`; None for less than 0.1 s."""
        if len(utterance.samples) < SAMPLE_RATE // 10:
            return {"embedding": None}
        inputs = self._features(utterance.samples.astype(np.float32), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with self._torch.no_grad():
            return {"embedding": _as_list(self._model(**inputs).embeddings[0].numpy())}


def _as_list(embedding: Float[np.ndarray, " size"]) -> list[float]:
    unit = embedding / max(np.linalg.norm(embedding), 1e-12)
    return [round(float(value), _DIGITS) for value in unit]
