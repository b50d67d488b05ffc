"""Gets the speech of cases: from the batch engine, from the codec, or from recordings."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from spark_jax.audio.load import load_audio
from spark_jax.errors import SparkError, one_line
from spark_jax.evaluation.cases import Case, Speech
from spark_jax.evaluation.judges.base import SAMPLE_RATE
from spark_jax.evaluation.run_folder import RunFolder
from spark_jax.inference.codec import EMBEDDED_VOICE, Codec
from spark_jax.inference.engine import EngineSettings
from spark_jax.inference.request import Request
from spark_jax.inference.synthesize import SparkTTS

CODEC_BATCH = 8  # recordings that are lost by a kill
TIMED = 5  # sentences that are spoken one at a time for the real-time factor

_NOTHING = np.zeros(0, np.float32)


@runtime_checkable
class Models(Protocol):
    """The models of an evaluation by their labels."""

    def tts(self, label: str) -> Any:
        """Returns a `SparkTTS`."""

    def codec(self, label: str) -> Any:
        """Returns a `Codec`."""


class LoadedModels:
    """Models that are loaded when they are first needed; one at a time.

    Args:
      directories: by label; None is the embedded voice.
      slots: of the batch engine; None: its own default.
    """

    def __init__(self, directories: Mapping[str, Path | None], slots: int | None = None):
        self._directories = dict(directories)
        self._engine = EngineSettings() if slots is None else EngineSettings(slots=slots)
        self._loaded: dict[tuple[str, str], Any] = {}

    def tts(self, label: str) -> SparkTTS:
        """Returns the model.

        Raises:
          SparkError: see `SparkTTS.load`.
        """
        return self._get("tts", label, lambda path: SparkTTS.load(path, engine=self._engine))

    def codec(self, label: str) -> Codec:
        """Returns the codec of a model.

        Raises:
          SparkError: see `Codec.load`.
        """
        if ("tts", label) in self._loaded:
            return self._loaded["tts", label].codec
        return self._get("codec", label, Codec.load)

    def _get(self, kind: str, label: str, load: Any) -> Any:
        if (kind, label) not in self._loaded:
            self._loaded.clear()
            self._loaded[kind, label] = load(self._directories[label] or EMBEDDED_VOICE)
        return self._loaded[kind, label]


def speak_cases(cases: Sequence[Case], models: Models, run: RunFolder) -> None:
    """Stores the speech of all cases that the folder does not have yet.

    What cannot be spoken is stored with its error, and the others go on.

    Raises:
      SparkError: a model or a recording cannot be read.
    """
    waiting = [case for case in cases if case.key not in run.spoken]
    for case in waiting:
        if case.how == "recording":
            samples = load_audio(case.source, SAMPLE_RATE)
            run.keep_speech(case.key, _fitted(samples), SAMPLE_RATE, Speech(len(samples) / SAMPLE_RATE))
    for label in dict.fromkeys(case.model for case in waiting if case.how != "recording"):
        own = [case for case in waiting if case.model == label]
        if requests := [case for case in own if case.how == "speak"]:
            _speak(requests, models.tts(label), run)
        if resynthesis := [case for case in own if case.how == "resynthesize"]:
            _resynthesize(resynthesis, models.codec(label), run)


def time_sentences(
    texts: Sequence[str], request: Mapping[str, Any], label: str, models: Models, run: RunFolder
) -> None:
    """Stores how long sentences take that are spoken one at a time, once everything is compiled."""
    if any(line.get("how") == "single" for line in run.times()):
        return
    tts = models.tts(label)
    requests = [Request(text=text, retries=0, **request) for text in [*texts[:1], *texts][: TIMED + 1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for number, item in enumerate(requests):
            start = time.perf_counter()
            audio = tts.speak(item)
            if number:  # the first one compiles
                seconds = len(audio.samples) / audio.sample_rate
                run.keep_time(how="single", audio_seconds=seconds, wall_seconds=time.perf_counter() - start)


def _speak(cases: Sequence[Case], tts: Any, run: RunFolder) -> None:
    """Speaks cases through the batch engine; a reference is encoded once."""
    voices: dict[tuple[str, str | None], Any] = {}
    start, seconds = time.perf_counter(), 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of each request; the report has the checks
        ready: list[tuple[Case, Request]] = []
        for case in cases:
            try:
                ready.append((case, _request(case, tts, voices)))
            except SparkError as error:
                run.keep_speech(case.key, _NOTHING, SAMPLE_RATE, Speech(0.0, error=one_line(error)))
        for case, audio in tqdm(_answers(ready, tts), total=len(ready), desc="speak", unit="text"):
            if isinstance(audio, SparkError):
                run.keep_speech(case.key, _NOTHING, SAMPLE_RATE, Speech(0.0, error=one_line(audio)))
                continue
            length = len(audio.samples) / audio.sample_rate
            seconds += length
            checks = tuple(sorted({finding.name for finding in audio.checks}))
            speech = Speech(round(length, 4), bool(audio.reached_limit), checks)
            run.keep_speech(case.key, _fitted(audio.samples), audio.sample_rate, speech)
    run.keep_time(how="batch", texts=len(ready), audio_seconds=seconds, wall_seconds=time.perf_counter() - start)


def _answers(ready: Sequence[tuple[Case, Request]], tts: Any) -> Iterator[tuple[Case, Any]]:
    """Yields each case with its audio or error, in the order in which they are finished."""
    for number, answer in tts.synthesize_batch([request for _, request in ready]):
        yield ready[number][0], answer


def _request(case: Case, tts: Any, voices: dict[tuple[str, str | None], Any]) -> Request:
    options = dict(case.request)
    reference, transcript = options.pop("reference", None), options.pop("transcript", None)
    if reference is not None:
        place = reference, transcript
        if place not in voices:
            voices[place] = tts.voice(reference, transcript)
        options["voice"] = voices[place]
    request = Request(text=case.text, retries=0, **options)  # the model itself is measured
    tts.plan(request)  # a text without anything to say is an error of this case alone
    return request


def _resynthesize(cases: Sequence[Case], codec: Any, run: RunFolder) -> None:
    """Encodes and decodes recordings."""
    rate = codec.config.sample_rate
    for first in tqdm(range(0, len(cases), CODEC_BATCH), desc="resynthesize", unit="batch"):
        batch = cases[first : first + CODEC_BATCH]
        recordings = [load_audio(case.source, rate) for case in batch]
        start = time.perf_counter()
        waves = codec.decode(codec.encode(recordings, [str(case.source) for case in batch]))
        seconds = sum(len(wave) for wave in waves) / rate
        run.keep_time(how="codec", audio_seconds=seconds, wall_seconds=time.perf_counter() - start)
        for case, wave in zip(batch, waves, strict=True):
            run.keep_speech(case.key, _fitted(wave), rate, Speech(round(len(wave) / rate, 4)))


def _fitted(samples: Any) -> np.ndarray:
    """Returns samples that 16 bits can hold; values that are not finite become silence."""
    return np.clip(np.nan_to_num(np.asarray(samples, np.float32)), -1.0, 1.0)
