"""Moves the semantic codes of a trained codec onto the latents that choose them (spherical k-means, Lloyd's steps).

    python tools/tiny_en/refit_codebook.py OUT --corpus corpus --model tiny_en_model \\
        --wav2vec2 runs/wav2vec2 --codec runs/bicodec_features

Codes follow their latents by Adam's steps, which in a run of a few hundred steps leaves them behind. A code's new
direction is the mean of its latents' directions, its length their mean length. Writes the codec into OUT; waveform and
language model are to be trained afterwards, from ids of the new codes.
"""

from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jaxtyping import Float
from tqdm import tqdm

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.data import manifest
from spark_jax.data.audio_sources import FolderAudio
from spark_jax.data.codec import CodecExamples
from spark_jax.errors import ends_with_a_line
from spark_jax.model_directory import directory as model_directory
from spark_jax.shared.config_files import load_config
from spark_jax.training.codec.dead_codes import quantizer_latents
from spark_jax.training.codec.features import utterance_features
from spark_jax.wav2vec2.model import Wav2Vec2


@ends_with_a_line()
def main(
    output: Annotated[Path, typer.Argument(help="model directory to write the codec into")],
    corpus: Annotated[Path, typer.Option(help="folder with metadata.jsonl")],
    model: Annotated[str, typer.Option(help="YAML of a SparkConfig")],
    wav2vec2: Annotated[Path, typer.Option(help="model directory or run with the feature extractor")],
    codec: Annotated[Path, typer.Option(help="model directory or run with the codec")],
    batches: Annotated[int, typer.Option(min=1, help="batches of 16 training utterances")] = 125,
    steps: Annotated[int, typer.Option(min=1, help="Lloyd's steps")] = 20,
    max_seconds: Annotated[float, typer.Option(help="longer utterances are left out; whole tokens")] = 2.8,
) -> None:
    """Refits the codebook of a codec; see the head of this file."""
    config = load_config(SparkConfig, model)
    wanted = model_directory.abstract_variables(config)
    extractor = model_directory.read_part(wav2vec2, "wav2vec2", wanted["wav2vec2"])["params"]
    variables = model_directory.read_part(codec, "bicodec", wanted["bicodec"])
    records = manifest.read_corpus(corpus, "train")
    source = FolderAudio(records, config.sample_rate)
    examples = CodecExamples([source], config, max_seconds, max_seconds, whole_utterances=True)
    latents = corpus_latents(config, extractor, variables, examples, batches)
    old = np.asarray(variables["params"]["quantizer"]["codebook"])
    new = refit(latents, old, steps)
    print(f"{len(latents)} latents; mean cosine to their codes {fit(latents, old):.4f} → {fit(latents, new):.4f}")
    variables["params"]["quantizer"]["codebook"] = jnp.asarray(new)
    model_directory.write_parts(output, config, {"bicodec": variables})


def corpus_latents(
    config: SparkConfig, extractor: dict, variables: dict, examples: CodecExamples, count: int
) -> Float[np.ndarray, "latents dim"]:
    """Computes the quantizer's inputs of whole utterances."""

    @jax.jit
    def encode(values, lengths):
        features, mask = utterance_features(Wav2Vec2(config.wav2vec2), extractor, values, lengths)
        return BiCodec(config.bicodec).apply(variables, features, mask, method=quantizer_latents)

    plan = examples.plan(16, seed=0)
    parts = []
    for indices in tqdm(plan(0)[:count], disable=None):
        batch = examples.load(indices, [np.random.default_rng(row) for row in range(len(indices))])
        latents, weights = jax.device_get(encode(batch["input_values"], batch["lengths"]))
        parts.append(latents[weights > 0])
    return np.concatenate(parts)


def _directions(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def fit(latents: Float[np.ndarray, "latents dim"], codebook: Float[np.ndarray, "codes dim"]) -> float:
    """Returns the mean cosine of the angle between latents and their codes."""
    return float((_directions(latents) @ _directions(codebook).T).max(axis=1).mean())


def refit(
    latents: Float[np.ndarray, "latents dim"], codebook: Float[np.ndarray, "codes dim"], steps: int, seed: int = 0
) -> Float[np.ndarray, "codes dim"]:
    """Returns the codebook after steps of spherical k-means; a code that no latent chooses moves onto a random one."""
    rng = np.random.default_rng(seed)
    directions, lengths = _directions(latents), np.linalg.norm(latents, axis=1)
    codes = _directions(codebook)
    for _ in range(steps):
        chosen = (directions @ codes.T).argmax(axis=1)
        counts = np.bincount(chosen, minlength=len(codes))
        sums = np.stack([np.bincount(chosen, column, len(codes)) for column in directions.T], axis=1)
        sums[counts == 0] = directions[rng.integers(len(directions), size=int((counts == 0).sum()))]
        codes = _directions(sums)
    chosen = (directions @ codes.T).argmax(axis=1)
    counts = np.bincount(chosen, minlength=len(codes))
    mean_lengths = np.bincount(chosen, lengths, len(codes)) / np.maximum(counts, 1)
    mean_lengths[counts == 0] = lengths.mean()
    return (codes * mean_lengths[:, None]).astype(np.float32)


if __name__ == "__main__":
    typer.run(main)
