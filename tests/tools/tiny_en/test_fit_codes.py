"""What the quantizer's latent is to be, and the maps around the codebook."""

import dataclasses
import json

import fit_codes
import jax
import numpy as np
import pytest
import soundfile
from helpers import tiny_model
from helpers.tiny_config import tiny
from jax import numpy as jnp

from spark_jax.bicodec.quantize import nearest_codes
from spark_jax.config import to_mapping
from spark_jax.model_directory import directory
from spark_jax.model_directory.parameters import abstract_part
from spark_jax.nn.convolution import weight_norm


@pytest.fixture
def frames():
    """Four utterances of features with ten real dimensions; a third of the frames is unvoiced."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 60, 10)) @ rng.normal(size=(10, 24)) + 3.0
    f0 = rng.uniform(100, 200, (4, 60)) * (rng.random((4, 60)) < 2 / 3)
    mask = np.arange(60) < np.array([60, 50, 40, 60])[:, None]
    return {"features": features.astype(np.float32), "f0": f0.astype(np.float32), "mask": mask}


def test_latents_have_components_of_one_variance_together_pitch_and_a_constant(frames):
    axes = fit_codes.LatentAxes(frames, components=10, pitch=0.8)
    targets = axes.targets(frames)
    assert targets.shape == (4, 60, 13)
    latents = targets[frames["mask"]]
    assert np.var(latents[:, :10], axis=0, ddof=1).sum() == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(latents[:, :10].mean(axis=0), 0, atol=1e-3)
    voiced = frames["f0"] > 0
    np.testing.assert_allclose(targets[..., 11], 0.8 * 1.5 * (voiced & frames["mask"]))
    first = voiced[0]
    logarithm = np.log(frames["f0"][0, first])
    np.testing.assert_allclose(targets[0, first, 10], 0.8 * (logarithm - logarithm.mean()) / 0.2, atol=1e-3)
    np.testing.assert_array_equal(targets[..., 12], fit_codes.CONSTANT)


def test_with_the_constant_directions_order_codes_as_distances_do(frames):
    latents = fit_codes.LatentAxes(frames, components=10, pitch=0.8).targets(frames)[frames["mask"]]
    codes = fit_codes.starting_codes(latents, 32)
    nearest = np.argmin(np.square(latents[:, None] - codes).sum(axis=-1), axis=1)
    chosen = np.asarray(nearest_codes(jnp.asarray(latents), jnp.asarray(codes)))
    assert np.mean(chosen == nearest) > 0.9
    short = np.asarray(nearest_codes(jnp.asarray(latents[:, :-1]), jnp.asarray(codes[:, :-1])))
    assert np.mean(short == nearest) < np.mean(chosen == nearest)


def test_codes_are_mapped_back_to_features(frames):
    """Ten components and a bias tell all of these features, whatever the rest of the latent says."""
    latents = fit_codes.LatentAxes(frames, components=10, pitch=0.8).targets(frames)[frames["mask"]]
    old = {"kernel_v": np.zeros((1, 13, 24)), "kernel_g": np.zeros(24), "bias": np.zeros(24)}
    variables = {"params": {"quantizer": {"out_project": old}}}
    found = fit_codes.quantizer_params(variables, latents[:8], latents, frames)
    np.testing.assert_array_equal(found["codebook"], latents[:8])
    new = found["out_project"]
    kernel = weight_norm(jnp.asarray(new["kernel_v"]), jnp.asarray(new["kernel_g"]), 2)[0]
    rebuilt = latents @ np.asarray(kernel) + new["bias"]
    features = frames["features"][frames["mask"]]
    np.testing.assert_allclose(rebuilt, (features - features.mean(axis=0)) / features.std(), atol=1e-3)


@pytest.mark.extended
def test_a_codec_with_fitted_codes_is_written(tmp_path, capsys):
    """On noise whose pitch is chance: its codes tell nothing of held-out pitch, but all of it is there and finite."""
    own, part = tiny(), dataclasses.replace
    sizes = part(
        own.bicodec,
        encoder=part(own.bicodec.encoder, out_channels=16),
        quantizer=part(own.bicodec.quantizer, input_dim=16, codebook_dim=9),
        prenet=part(own.bicodec.prenet, input_channels=16),
    )
    own = part(own, bicodec=sizes)
    (tmp_path / "model.yaml").write_text(json.dumps(to_mapping(own)))  # JSON is YAML
    rng = np.random.default_rng(0)
    with (tmp_path / "metadata.jsonl").open("w") as lines:
        for i in range(48):
            soundfile.write(tmp_path / f"{i}.flac", rng.uniform(-0.5, 0.5, 6400), 16_000)
            record = {"index": str(i), "split": "train" if i < 32 else "validation", "wav_path": f"{i}.flac"}
            lines.write(json.dumps(record | {"f0_start": 20 * i, "f0_frames": 20}) + "\n")
    np.save(tmp_path / "f0.npy", (rng.uniform(1000, 2000, 960) * (rng.random(960) < 0.6)).astype(np.uint16))
    variables = tiny_model.draw(abstract_part("wav2vec2", own.wav2vec2))
    directory.write_parts(tmp_path / "wav2vec2", own, {"wav2vec2": variables})
    (tmp_path / "other.yaml").write_text(json.dumps(to_mapping(tiny())))
    arguments = {"corpus": tmp_path, "model": str(tmp_path / "model.yaml"), "wav2vec2": tmp_path / "wav2vec2"}
    numbers = {"pitch": 0.8, "batches": 2, "steps": 20, "max_seconds": 0.4}
    fit_codes.main(tmp_path / "codes", **arguments, **numbers)
    with pytest.raises(SystemExit, match="2"):
        fit_codes.main(tmp_path / "no codes", **arguments | {"model": str(tmp_path / "other.yaml")}, **numbers)
    assert "quantizer.input_dim is 20, expected 16" in capsys.readouterr().err

    found = json.loads((tmp_path / "codes" / "codes.json").read_text())
    assert found["pitch"] == 0.8 and found["f0_r2"] < 0.5 and 0.3 < found["voicing_accuracy"] < 0.8
    assert all(np.all(np.isfinite(value)) for value in found.values())
    written = directory.read_part(tmp_path / "codes", "bicodec")
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(written))
    codebook = written["params"]["quantizer"]["codebook"]
    assert codebook.shape == (own.bicodec.quantizer.codebook_size, 9)
    assert np.all(codebook[:, -1] > 1)  # on its way to the constant
