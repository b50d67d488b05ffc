"""Spark-TTS in JAX/Flax: text-to-speech with one stream of speech tokens.

    tts = spark_jax.SparkTTS.load()
    audio = tts.synthesize("Hello.")

The public names are imported at first use, so that `import spark_jax` costs nothing.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_jax.config import SparkConfig
    from spark_jax.errors import SparkError
    from spark_jax.inference.audio import Audio
    from spark_jax.inference.codec import Codec
    from spark_jax.inference.synthesize import SparkTTS
    from spark_jax.model_directory.voice import Voice

_HOMES = {
    "Audio": "spark_jax.inference.audio",
    "Codec": "spark_jax.inference.codec",
    "SparkConfig": "spark_jax.config",
    "SparkError": "spark_jax.errors",
    "SparkTTS": "spark_jax.inference.synthesize",
    "Voice": "spark_jax.model_directory.voice",
}
__all__ = ["Audio", "Codec", "SparkConfig", "SparkError", "SparkTTS", "Voice", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("spark-jax")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
