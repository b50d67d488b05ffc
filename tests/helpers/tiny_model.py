"""A model directory of random weights at `tiny()`'s sizes: everything runs, nothing makes sense."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from helpers.tiny_config import tiny

from spark_jax.model_directory import directory as model_directory
from spark_jax.text.tokenizer import build_tokenizer

# Gains below 1 keep the wave generator from saturating, where rounding would grow to audible differences.
_CONSTANTS = {
    "scale": 1.0,
    "var": 1.0,
    "gamma": 1.0,
    "alpha": 1.0,
    "kernel_g": 0.5,
    "bias": 0.0,
    "mean": 0.0,
    "cluster_size": 0.0,
}


def variables(seed: int = 0) -> dict:
    """Random arrays of about unit gain, so that ids and samples depend on their inputs."""
    return draw(model_directory.abstract_variables(tiny()), seed)


def draw(abstract: Any, seed: int = 0) -> Any:
    """Such arrays in the shapes of any of our models' parameters and statistics: what `init` takes a minute for."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name = path[-1].key
        if name in _CONSTANTS:
            return np.full(shape.shape, _CONSTANTS[name], shape.dtype)
        return (rng.standard_normal(shape.shape) / np.sqrt(np.prod(shape.shape[:-1]))).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def write(directory: Path, tokenizer_directory: Path) -> None:
    """Writes the model directory; `tokenizer_directory` is a folder to make the tokenizer in."""
    codec = tiny().bicodec
    codes = codec.quantizer.codebook_size, int(np.prod(codec.speaker_encoder.fsq_levels))
    build_tokenizer("bytes", *codes).save(tokenizer_directory)
    model_directory.save(directory, tiny(), variables(), tokenizer_directory)


def speech(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """A buzz with changing pitch and loudness, float64 at 16 kHz."""
    time = np.arange(round(seconds * 16000)) / 16000
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 1.5 * time)) / 16000
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))
    return 0.1 * buzz + 0.005 * np.random.default_rng(seed).standard_normal(len(time))
