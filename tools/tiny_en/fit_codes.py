"""Fits the semantic codes of a codec to features and pitch, before its waveform is trained.

    python tools/tiny_en/fit_codes.py OUT --corpus corpus --wav2vec2 runs/wav2vec2 \\
        --model tools/tiny_en/recipes/model.yaml

A code shall say what its frame is, pitch included, which codes of features alone do not. The quantizer's latent is
given: principal components of the features, whose variances add up to 1, α · [v · r, 1.5 · v] with voicing v and
relative log F0 r (`wav2vec2.pitch`), and a constant, with which the directions that the quantizer compares order codes
as distances do. The encoder learns this latent from features, the codebook is fitted to what it gives by k-means, and
the map from codes to the prenet rebuilds features. Writes the codec into OUT, and OUT/codes.json with what codes of
held-out utterances tell: explained variance of relative pitch, accuracy of voicing, and entropies in nats.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from code_statistics import code_statistics
from flax import linen as nn
from jaxtyping import Array, Float, Int
from refit_codebook import fit, refit
from tqdm import tqdm

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.data import manifest
from spark_jax.data.audio_sources import FolderAudio
from spark_jax.data.codec import CodecExamples
from spark_jax.data.pitch_tracks import PitchTracks
from spark_jax.errors import SparkError, ends_with_a_line
from spark_jax.model_directory import directory as model_directory
from spark_jax.shared.config_files import load_config
from spark_jax.shared.files import write_json
from spark_jax.training.codec.dead_codes import quantizer_latents
from spark_jax.training.codec.features import utterance_features
from spark_jax.wav2vec2.model import Wav2Vec2
from spark_jax.wav2vec2.pitch import relative_pitch

VOICING_SCALE = 1.5
CONSTANT = 3.0  # much longer than the other coordinates together, whose variance is about 1.5
ROWS = 16  # utterances of a batch

Frames = dict[str, np.ndarray]  # of utterances in padded rows: "features", "mask", "f0"


@ends_with_a_line()
def main(
    output: Annotated[Path, typer.Argument(help="model directory to write the codec into")],
    corpus: Annotated[Path, typer.Option(help="folder with metadata.jsonl and f0.npy")],
    model: Annotated[str, typer.Option(help="YAML of a SparkConfig")],
    wav2vec2: Annotated[Path, typer.Option(help="model directory or run with the feature extractor")],
    pitch: Annotated[float, typer.Option(min=0, help="α, the share of pitch in the codes")] = 0.8,
    batches: Annotated[int, typer.Option(min=1, help="batches of 16 training utterances")] = 150,
    steps: Annotated[int, typer.Option(min=1, help="of the encoder's training, ten for each of Lloyd's")] = 600,
    max_seconds: Annotated[float, typer.Option(help="longer utterances are left out; whole tokens")] = 3.0,
) -> None:
    """Fits codes; see the head of this file."""
    config = load_config(SparkConfig, model)
    if (latent := config.bicodec.quantizer.input_dim) != (features := config.wav2vec2.hidden_size):
        raise SparkError(f"{model}: quantizer.input_dim is {latent}, expected {features}, wav2vec2.hidden_size")
    wanted = model_directory.abstract_variables(config)
    extractor = model_directory.read_part(wav2vec2, "wav2vec2", wanted["wav2vec2"])["params"]
    train, held_out = (
        corpus_frames(config, extractor, corpus, split, count, max_seconds)
        for split, count in (("train", batches), ("validation", max(batches // 10, 1)))
    )
    axes = LatentAxes(train, config.bicodec.quantizer.codebook_dim - 3, pitch)
    codec = BiCodec(config.bicodec)
    variables = start_of_codec(codec, config)
    variables = train_encoder(codec, variables, train, axes.targets(train), steps)
    latents = frame_latents(codec, variables, train)
    codebook = refit(latents, starting_codes(latents, config.bicodec.quantizer.codebook_size), max(steps // 10, 1))
    print(f"{len(latents)} latents; mean cosine to their codes {fit(latents, codebook):.4f}")
    variables["params"]["quantizer"] |= quantizer_params(variables, codebook, latents, train)
    model_directory.write_parts(output, config, {"bicodec": variables})
    ids, other_ids = (frame_ids(codec, variables, frames) for frames in (train, held_out))
    found = {"pitch": pitch} | code_statistics(ids, train, other_ids, held_out)
    targets = _valid(axes.targets(held_out), held_out)[:, :-1]
    errors = np.square(frame_latents(codec, variables, held_out)[:, :-1] - targets).mean(axis=0)
    found["latents_r2"] = float(1 - errors.sum() / targets.var(axis=0).sum())
    found["pitch_latents_r2"] = [float(value) for value in 1 - errors[-2:] / targets.var(axis=0)[-2:]]
    write_json(output / "codes.json", found)
    print(found)


def corpus_frames(
    config: SparkConfig, extractor: Any, corpus: Path, split: str, count: int, max_seconds: float
) -> Frames:
    """Features and pitch of `count` batches of whole utterances."""
    tracks = PitchTracks(corpus)
    source = FolderAudio(manifest.read_corpus(corpus, split), config.sample_rate, tracks=tracks)
    examples = CodecExamples([source], config, max_seconds, max_seconds, whole_utterances=True, pitch=True)
    extract = jax.jit(partial(utterance_features, Wav2Vec2(config.wav2vec2), extractor))
    found = []
    for indices in tqdm(examples.plan(ROWS, seed=0)(0)[:count], disable=None):
        batch = examples.load(indices, [np.random.default_rng(row) for row in range(len(indices))])
        features, mask = jax.device_get(extract(batch["input_values"], batch["lengths"]))
        found.append({"features": features, "mask": mask, "f0": batch["f0"][:, : features.shape[1]]})
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _valid(values: np.ndarray, frames: Frames) -> np.ndarray:
    return values[frames["mask"]]


class LatentAxes:
    """What the quantizer's latent is to be: see the head of this file."""

    def __init__(self, frames: Frames, components: int, pitch: float):
        features = _valid(frames["features"], frames)
        self.mean, self.pitch = features.mean(axis=0), pitch
        covariance = np.cov(features.T)
        values, vectors = np.linalg.eigh(covariance)
        self.basis = vectors[:, ::-1][:, :components] / np.sqrt(np.trace(covariance))
        kept = values[::-1][:components].sum() / values.sum()
        print(f"{components} principal components have {kept:.3f} of the features' variance")

    def targets(self, frames: Frames) -> Float[np.ndarray, "rows frames dim"]:
        """Returns the latents that the encoder shall give."""
        relative, voiced = jax.device_get(relative_pitch(jnp.asarray(frames["f0"]), jnp.asarray(frames["mask"])))
        pitch = self.pitch * np.stack([relative, VOICING_SCALE * voiced], axis=-1)
        constant = np.full((*voiced.shape, 1), CONSTANT, np.float32)
        components = (frames["features"] - self.mean) @ self.basis
        return np.concatenate([components, pitch, constant], axis=-1).astype(np.float32)


def start_of_codec(codec: BiCodec, config: SparkConfig) -> Any:
    """Fresh variables of a codec."""
    features = jnp.zeros((1, 8, config.wav2vec2.hidden_size))
    init = jax.jit(partial(codec.init, train=False))
    return nn.meta.unbox(init(jax.random.key(0), features, jnp.zeros((1, config.ref_segment_samples))))


def train_encoder(codec: BiCodec, variables: Any, frames: Frames, targets: np.ndarray, steps: int) -> Any:
    """Trains the encoder, and the quantizer's map onto its latents, to give the targets."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    trained = {name: variables["params"][name] for name in ("encoder", "quantizer")}
    state = optimizer.init(trained)

    def loss_fn(trained: Any, features: Array, mask: Array, target: Array) -> Array:
        everything = {**variables, "params": {**variables["params"], **trained}}
        latents, _ = codec.apply(everything, features, mask, method=quantizer_latents)
        errors = jnp.sum(jnp.square(latents.reshape(target.shape) - target), axis=-1)
        return jnp.mean(errors, where=mask)

    @jax.jit
    def step(trained: Any, state: Any, *batch: Array) -> tuple[Any, Any, Array]:
        loss, grads = jax.value_and_grad(loss_fn)(trained, *batch)
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    rng = np.random.default_rng(0)
    losses = []
    for number in range(steps):
        rows = rng.choice(len(targets), min(ROWS, len(targets)), replace=False)
        trained, state, loss = step(trained, state, frames["features"][rows], frames["mask"][rows], targets[rows])
        losses.append(loss)
        if number % 100 == 99:
            print(f"step {number + 1}: squared error {np.mean(jax.device_get(losses[-100:])):.4f}", flush=True)
    return {**variables, "params": {**variables["params"], **jax.device_get(trained)}}


def frame_latents(codec: BiCodec, variables: Any, frames: Frames) -> Float[np.ndarray, "latents dim"]:
    """The quantizer's latents of all frames that are no padding."""
    latents = jax.jit(partial(codec.apply, method=quantizer_latents))
    rows = range(0, len(frames["mask"]), ROWS)
    found = []
    for part in ({k: v[i : i + ROWS] for k, v in frames.items()} for i in rows):
        values, weights = jax.device_get(latents(variables, part["features"], part["mask"]))
        found.append(values[weights > 0])
    return np.concatenate(found)


def starting_codes(latents: Float[np.ndarray, "latents dim"], count: int) -> Float[np.ndarray, "codes dim"]:
    """Random ones of the latents."""
    return latents[np.random.default_rng(0).choice(len(latents), count, replace=False)]


def quantizer_params(variables: Any, codebook: np.ndarray, latents: np.ndarray, frames: Frames) -> dict[str, Any]:
    """The codebook, and the map that rebuilds features, of unit variance, from codes (least squares)."""
    features = _valid(frames["features"], frames)
    features = (features - features.mean(axis=0)) / features.std()
    inputs = np.concatenate([latents, np.ones((len(latents), 1), np.float32)], axis=1)
    solution = np.linalg.lstsq(inputs, features, rcond=None)[0].astype(np.float32)
    kernel = solution[None, :-1]  # [1, dim, features], weight-normed
    norms = np.sqrt(np.sum(np.square(kernel), axis=(0, 1)))
    old = variables["params"]["quantizer"]["out_project"]
    new = {"kernel_v": kernel, "kernel_g": norms.reshape(old["kernel_g"].shape), "bias": solution[-1]}
    return {"codebook": codebook, "out_project": new}


def frame_ids(codec: BiCodec, variables: Any, frames: Frames) -> Int[np.ndarray, "rows frames"]:
    """Semantic ids of padded rows."""
    encode = jax.jit(lambda v, x, mask: codec.apply(v, x, mask, method=_ids))
    rows = range(0, len(frames["mask"]), ROWS)
    parts = [encode(variables, frames["features"][i : i + ROWS], frames["mask"][i : i + ROWS]) for i in rows]
    return np.concatenate(jax.device_get(parts))


def _ids(codec: BiCodec, features: Array, mask: Array) -> Array:
    return codec.quantizer.tokenize(codec.encoder(features, mask))


if __name__ == "__main__":
    typer.run(main)
