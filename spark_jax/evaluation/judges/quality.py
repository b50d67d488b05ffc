"""Judges of quality: DNSMOS without a reference; STOI, PESQ and mel-cepstral distance beside a recording."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io.wavfile

from spark_jax.evaluation.judges.base import SAMPLE_RATE, Utterance, finite, versions
from spark_jax.shared.extra import needs_extra


class DnsmosJudge:
    """DNSMOS P.835 and P.808 (package speechmos).

    Raises:
      SparkError: from the constructor, where the extra `evaluation` is not installed.
    """

    name = "dnsmos"

    def __init__(self):
        with needs_extra("evaluation"):
            from speechmos import dnsmos
        self._dnsmos, self.version = dnsmos, versions("speechmos")

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns `overall`, `signal`, `background` (P.835) and `p808`, from 1 to 5."""
        found = self._dnsmos.run(np.clip(utterance.samples, -1.0, 1.0).astype(np.float32), SAMPLE_RATE)
        names = {"overall": "ovrl_mos", "signal": "sig_mos", "background": "bak_mos", "p808": "p808_mos"}
        return {name: finite(found[key], 3) for name, key in names.items()}


class StoiJudge:
    """Short-time objective intelligibility (package pystoi).

    Raises:
      SparkError: from the constructor, where the extra `evaluation` is not installed.
    """

    name = "stoi"

    def __init__(self):
        with needs_extra("evaluation"):
            import pystoi
        self._stoi, self.version = pystoi.stoi, versions("pystoi")

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns `stoi`, at most 1; nothing without a target, None for less than 0.4 s."""
        if utterance.target is None:
            return {}
        target, samples = _same_length(utterance)
        if len(target) < 0.4 * SAMPLE_RATE:
            return {"stoi": None}
        return {"stoi": finite(self._stoi(target, samples, SAMPLE_RATE), 4)}


class PesqJudge:
    """PESQ, narrow band (P.862) and wide band (P.862.2; package pesq).

    Raises:
      SparkError: from the constructor, where the extra `evaluation` is not installed.
    """

    name = "pesq"

    def __init__(self):
        with needs_extra("evaluation"):
            import pesq
        self._pesq, self.version = pesq, versions("pesq")

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns `narrow` and `wide`, at most 4.5 and 4.6; nothing without a target, None where it hears no speech."""
        if utterance.target is None:
            return {}
        target, samples = _same_length(utterance)
        return {name: self._score(target, samples, mode) for name, mode in (("narrow", "nb"), ("wide", "wb"))}

    def _score(self, target: np.ndarray, samples: np.ndarray, mode: str) -> float | None:
        if len(target) < SAMPLE_RATE // 4 or not np.any(target) or not np.any(samples):
            return None
        score = self._pesq.pesq(SAMPLE_RATE, target, samples, mode, on_error=self._pesq.PesqError.RETURN_VALUES)
        return finite(score, 3) if score > 0 else None  # -1: it found no utterance


class CepstralJudge:
    """Mel-cepstral distance, frame by frame (package mel-cepstral-distance).

    Raises:
      SparkError: from the constructor, where the extra `evaluation` is not installed.
    """

    name = "mcd"

    def __init__(self):
        with needs_extra("evaluation"):
            from mel_cepstral_distance import compare_audio_files
        self._compare, self.version = compare_audio_files, versions("mel-cepstral-distance")

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns `mcd` in dB, 0 for the same speech; nothing without a target, None for less than 0.1 s."""
        if utterance.target is None:
            return {}
        target, samples = _same_length(utterance)
        if len(target) < SAMPLE_RATE // 10 or not np.any(target) or not np.any(samples):
            return {"mcd": None}
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("target.wav", "samples.wav")]
            for path, wave in zip(paths, (target, samples), strict=True):
                scipy.io.wavfile.write(path, SAMPLE_RATE, wave)
            distance, _ = self._compare(*paths, aligning="pad")
        return {"mcd": finite(distance, 3)}


def _same_length(utterance: Utterance) -> tuple[np.ndarray, np.ndarray]:
    """Returns target and samples in float32, cut to the shorter one: a codec leaves out what is no whole token."""
    length = min(len(utterance.target), len(utterance.samples))
    return utterance.target[:length].astype(np.float32), utterance.samples[:length].astype(np.float32)
