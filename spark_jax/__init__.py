"""Spark-TTS in JAX/Flax: text-to-speech with one stream of speech tokens."""
