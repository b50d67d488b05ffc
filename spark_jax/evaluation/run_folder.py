"""The folder of an evaluation: audio, and journals of what was spoken and judged, so that a killed one goes on.

What is judged is what is stored: the 16-bit samples of the file. A line of a journal is written when its work is done;
a torn last line is that of a kill, and its work is done again.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from spark_jax.audio.load import resample
from spark_jax.audio.write import write_audio
from spark_jax.errors import SparkError
from spark_jax.evaluation.cases import Speech
from spark_jax.evaluation.judges.base import SAMPLE_RATE, Judge
from spark_jax.shared import files

_SHOWN = 80  # characters of a setting in a message

SETTINGS, SPOKEN, JUDGED, TIMES = "settings.json", "spoken.jsonl", "judged.jsonl", "times.jsonl"


class RunFolder:
    """Audio and journals of one evaluation.

    Args:
      folder: made where it does not exist; one with the same settings is continued.
      settings: what the results depend on, as JSON has it.

    Raises:
      SparkError: from the constructor, where the folder holds an evaluation with other settings or something else, or
        cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        settings = json.loads(json.dumps(settings))
        try:
            (folder / "audio").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.cannot_write(folder, error) from error
        path = folder / SETTINGS
        if path.exists():
            _check_same(path, files.read_json(path), settings)
        elif (folder / SPOKEN).exists():
            raise SparkError(f"{folder}: has no {SETTINGS}, expected a new folder, or that of an evaluation")
        else:
            files.write_json(path, settings)
        self.spoken = {line["key"]: _as_speech(line) for line in _read_journal(folder / SPOKEN)}
        self.judged = {(line["key"], line["judge"], line["version"]): line["found"] for line in self._journal(JUDGED)}

    def audio_path(self, key: str) -> Path:
        """Returns the file of a case's speech."""
        return self.folder / "audio" / f"{key}.flac"

    def keep_speech(self, key: str, samples: Float[np.ndarray, "_"], sample_rate: int, speech: Speech) -> None:
        """Stores the speech of a case; without samples only how it came out."""
        if len(samples):
            write_audio(self.audio_path(key), samples, sample_rate)
        self.spoken[key] = speech
        self._append(SPOKEN, {"key": key, **_as_line(speech)})

    def samples(self, key: str) -> Float[np.ndarray, " time"]:
        """Returns the stored speech of a case at the judges' sample rate, float64.

        Raises:
          SparkError: the file cannot be read.
        """
        path = self.audio_path(key)
        try:
            samples, rate = soundfile.read(path, dtype="float64")
        except (OSError, soundfile.SoundFileError) as error:
            raise files.cannot_read(path, error, "the speech that was stored") from error
        return resample(samples, rate, SAMPLE_RATE)

    def found(self, key: str, judge: Judge) -> dict[str, Any] | None:
        """Returns what a judge of this version has found in a case; None: it has not heard it."""
        return self.judged.get((key, judge.name, judge.version))

    def keep_found(self, key: str, judge: Judge, found: Mapping[str, Any]) -> None:
        """Stores what a judge found in a case."""
        line = {"key": key, "judge": judge.name, "version": judge.version, "found": dict(found)}
        self.judged[(key, judge.name, judge.version)] = json.loads(json.dumps(line["found"]))
        self._append(JUDGED, line)

    def keep_time(self, **numbers: Any) -> None:
        """Stores a measurement of time, which is no part of what must be the same again."""
        self._append(TIMES, numbers)

    def times(self) -> list[dict[str, Any]]:
        """Returns the measurements of time."""
        return self._journal(TIMES)

    def _journal(self, name: str) -> list[dict[str, Any]]:
        return _read_journal(self.folder / name)

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        path = self.folder / name
        try:
            with path.open("ab") as file:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise files.cannot_write(path, error) from error


def _read_journal(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a journal, and cuts a torn one off, so that the next begins on a line of its own."""
    if not path.exists():
        return []
    content = files.read_bytes(path)
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        try:
            os.truncate(path, len(whole))
        except OSError as error:
            raise files.cannot_write(path, error) from error
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise SparkError(f"{path}: a line is not JSON ({error}); expected a journal of an evaluation") from error


def _check_same(path: Path, old: Any, new: dict[str, Any]) -> None:
    if not isinstance(old, dict):
        raise SparkError(f"{path}: expected the settings of an evaluation")
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            was, wanted = (_shortened(settings.get(name)) for settings in (old, new))
            raise SparkError(
                f"{path.parent}: holds an evaluation with {name} {was}, asked for is {wanted}; "
                "expected the same, or another folder"
            )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _as_line(speech: Speech) -> dict[str, Any]:
    return {
        "seconds": speech.seconds,
        "reached_limit": speech.reached_limit,
        "checks": list(speech.checks),
        "error": speech.error,
    }


def _as_speech(line: Mapping[str, Any]) -> Speech:
    return Speech(line["seconds"], line["reached_limit"], tuple(line["checks"]), line["error"])
