"""Inputs that nobody made on purpose: speech, or one line; nothing else is left, and memory has a bound."""

import json
import os
import subprocess
import sys

import pytest
from helpers import anything

from spark_jax.cli import speech
from spark_jax.inference.synthesize import SparkTTS


@pytest.mark.extended
def test_random_texts_are_spoken_or_refused(tiny_model_directory, tmp_path, monkeypatch):
    """By a model that makes no sense, but takes the same way."""
    tts = SparkTTS.load(tiny_model_directory, ("bicodec", "llm"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speech, "_load", lambda *_, **__: tts)
    faults, spoken = anything.say_texts(range(30), made_up=True)
    assert faults == {} and spoken > 10


@pytest.mark.slow
def test_300_texts_and_200_files_by_the_embedded_voice_in_one_process(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, os.path.dirname(anything.__file__) + "/.."])}
    command = [sys.executable, anything.__file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(found)
    assert found["faults"] == {} and os.listdir(tmp_path) == []
    assert found["spoken"] > 150 and found["kept"] > 20
    assert found["memory"] < 2e9
