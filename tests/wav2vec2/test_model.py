"""Parity of wav2vec2 with the reference's goldens; masked batches equal single items."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.tiny_config import tiny
from safetensors.flax import load_file

from spark_jax import config as config_lib
from spark_jax.nn.cpu.fourier_convolution import fourier_convolution
from spark_jax.wav2vec2 import ctc, model, positional

ASSETS = pathlib.Path(__file__).parents[1] / "assets" / "wav2vec2"
TOLERANCE = 1e-5  # relative to the largest value
TINY = tiny().wav2vec2


def close(actual, expected, tolerance=TOLERANCE):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def reference_config():
    names = {field.name for field in dataclasses.fields(config_lib.Wav2Vec2Config)}
    values = {k: v for k, v in json.loads((ASSETS / "config.json").read_text()).items() if k in names}
    return config_lib.from_mapping(config_lib.Wav2Vec2Config, values, "config.json")


def from_torch(tensors, config, depth):
    """The extractor's parameters out of torch tensors, layer stack included."""
    hidden, heads = config.hidden_size, config.num_attention_heads

    def norm(name):
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def linear(name):
        return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    def layer(i):
        name = f"encoder.layers.{i}"
        attention = {}
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            dense = linear(f"{name}.attention.{theirs}")
            attention[ours] = {
                "kernel": dense["kernel"].reshape(hidden, heads, -1),
                "bias": dense["bias"].reshape(heads, -1),
            }
        out = linear(f"{name}.attention.out_proj")
        attention["out"] = {"kernel": out["kernel"].reshape(heads, -1, hidden), "bias": out["bias"]}
        return {
            "attention_norm": norm(f"{name}.layer_norm"),
            "attention": attention,
            "mlp_norm": norm(f"{name}.final_layer_norm"),
            "up": linear(f"{name}.feed_forward.intermediate_dense"),
            "down": linear(f"{name}.feed_forward.output_dense"),
        }

    extractor = {}
    for i in range(len(config.conv_dim)):
        conv = f"feature_extractor.conv_layers.{i}"
        extractor[f"conv_{i}"] = {
            "kernel": tensors[f"{conv}.conv.weight"].transpose(2, 1, 0),
            "bias": tensors[f"{conv}.conv.bias"],
        }
        extractor[f"norm_{i}"] = norm(f"{conv}.layer_norm")
    position = "encoder.pos_conv_embed.conv"
    return {
        "feature_extractor": extractor,
        "feature_projection": {
            "norm": norm("feature_projection.layer_norm"),
            "projection": linear("feature_projection.projection"),
        },
        "positional_conv": {
            "v": tensors[f"{position}.parametrizations.weight.original1"].transpose(2, 1, 0),
            "g": tensors[f"{position}.parametrizations.weight.original0"].reshape(-1),
            "bias": tensors[f"{position}.bias"],
        },
        "layers": {"layer": jax.tree.map(lambda *leaves: np.stack(leaves), *map(layer, range(depth)))},
    }


def random_variables(module, samples):
    """Variables without compiling the initializers, which would take most of a test's time."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), samples))
    return jax.tree.map(lambda leaf: rng.normal(0.3, 0.3, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def golden():
    return load_file(ASSETS / "golden.safetensors")


@pytest.fixture(scope="module")
def tensors():
    return load_file(ASSETS / "model.safetensors")


def test_intermediates_and_hidden_states(golden, tensors):
    config = reference_config()
    module = model.Wav2Vec2(config, num_layers=config.num_hidden_layers)
    params = from_torch(tensors, config, config.num_hidden_layers)
    inputs = golden["single/input_values"]
    expected_tree = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), inputs))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected_tree)

    apply = jax.jit(
        lambda params, x: module.apply({"params": params}, x, method="hidden_states", mutable=["intermediates"])
    )
    states, extra = apply(params, inputs)
    seen = extra["intermediates"]
    for i in range(7):
        close(seen["feature_extractor"][f"features_{i}"][0], golden[f"single/conv{i}"].transpose(0, 2, 1))
    close(seen["feature_projection"]["projected"][0], golden["single/projected"])
    close(states[0] - golden["single/projected"], golden["single/pos_conv"])
    close(seen["layers"]["layer"]["attention_output"][0][0], golden["single/layer0_attn"])
    for i in (0, 1, 11, 14, 16, 17):
        close(states[i], golden[f"single/hs{i}"])


def test_features_stop_at_the_last_tap(golden, tensors):
    config = reference_config()
    params = from_torch(tensors, config, 16)
    apply = jax.jit(model.Wav2Vec2(config).apply)
    close(apply({"params": params}, golden["single/input_values"]), golden["single/feats_mix"])
    # Zero padding without a mask, as the reference computes it.
    close(apply({"params": params}, golden["batch_padded/input_values"]), golden["batch_padded/feats_mix"])


@pytest.mark.extended
def test_final_norm_of_the_ctc_model(golden, tensors):
    config = reference_config()
    head = {"kernel": np.zeros((32, 4), np.float32), "bias": np.zeros(4, np.float32)}
    norm = {"scale": tensors["encoder.layer_norm.weight"], "bias": tensors["encoder.layer_norm.bias"]}
    params = {"wav2vec2": from_torch(tensors, config, 18), "final_norm": norm, "head": head}
    module = ctc.Wav2Vec2ForCTC(config, 4)
    apply = jax.jit(lambda params, x: module.apply(params, x, mutable=["intermediates"]))
    for case in ("single", "batch_padded"):
        (logits, frames), extra = apply({"params": params}, golden[f"{case}/input_values"])
        close(extra["intermediates"]["last_hidden_state"][0], golden[f"{case}/last_hidden_state"])
        assert logits.shape[1:] == (27, 4) and frames.tolist() == [27] * len(logits)


@pytest.mark.extended
def test_masked_batch_equals_single_items():
    module = model.Wav2Vec2(TINY)
    samples = np.random.default_rng(0).normal(size=(2, 6000)).astype(np.float32)
    lengths = np.array([6000, 3500])
    variables = random_variables(module, samples)
    inputs = model.normalize_input(samples, lengths)
    # What stands in the padding must not matter either.
    apply = jax.jit(module.apply)
    batch = apply(variables, inputs.at[1, 3500:].set(7.0), lengths)
    for i, length in enumerate(lengths):
        single = apply(variables, model.normalize_input(samples[i : i + 1, :length]))
        close(batch[i, : single.shape[1]], single[0])


def test_features_are_the_mean_of_the_taps():
    config = dataclasses.replace(TINY, feature_layers=(0, 2, 3))
    module = model.Wav2Vec2(config)
    samples = np.random.default_rng(1).normal(size=(1, 2000)).astype(np.float32)
    variables = random_variables(module, samples)
    states = jax.jit(lambda v, x: module.apply(v, x, method="hidden_states"))(variables, samples)
    assert states.shape == (4, 1, 6, 16)
    close(jax.jit(module.apply)(variables, samples), states[jnp.array([0, 2, 3])].mean(0))


def test_taps_beyond_the_layers_are_an_error():
    with pytest.raises(ValueError, match="feature_layers"):
        model.Wav2Vec2(TINY, num_layers=1).init(jax.random.key(0), jnp.zeros((1, 400)))


@pytest.mark.extended
def test_bfloat16_computation_keeps_float32_parameters():
    module = model.Wav2Vec2(TINY, dtype=jnp.bfloat16)
    samples = np.random.default_rng(1).normal(size=(1, 2000)).astype(np.float32)
    variables = random_variables(module, samples)
    shapes = jax.eval_shape(module.init, jax.random.key(0), samples)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    features = jax.jit(module.apply)(variables, samples)
    assert features.dtype == jnp.float32
    close(features, jax.jit(model.Wav2Vec2(TINY).apply)(variables, samples), 0.05)


@pytest.mark.parametrize(("length", "frames"), [(10, 0), (399, 0), (400, 1), (720, 2), (16_000, 49), (159_253, 497)])
def test_num_frames(length, frames):
    config = config_lib.Wav2Vec2Config()
    assert model.num_frames(length, config) == frames
    assert model.num_frames(np.array([length]), config).tolist() == [frames]
    assert model.num_frames(jnp.array([length]), config).tolist() == [frames]


@pytest.mark.parametrize(("frames", "kernel"), [(5, 16), (16, 16), (37, 16), (20, 7)])
def test_both_positional_convolutions_equal_the_sum(frames, kernel):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, frames, 12)).astype(np.float32)
    weight = rng.normal(size=(kernel, 4, 12)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (kernel // 2, kernel), (0, 0))).reshape(2, -1, 3, 4)
    kernels = weight.reshape(kernel, 4, 3, 4)
    windows = np.stack([padded[:, t : t + kernel] for t in range(frames)], axis=1)
    expected = np.einsum("btkgi,kigo->btgo", windows, kernels).reshape(2, frames, 12)
    close(jax.jit(fourier_convolution, static_argnums=2)(x, weight, 3), expected)
    close(positional._directly(jnp.asarray(x), jnp.asarray(weight), 3), expected)


def test_every_parameter_has_a_logical_axis_per_dimension():
    shapes = jax.eval_shape(model.Wav2Vec2(TINY).init, jax.random.key(0), jnp.zeros((1, 400)))
    specs = nn.get_partition_spec(shapes)["params"]
    leaves = nn.meta.unbox(shapes)["params"]
    attention = specs["layers"]["layer"]["attention"]
    assert attention["query"]["kernel"] == jax.P("layers", "embed", "heads", "head_dim")
    for spec, leaf in zip(jax.tree.leaves(specs), jax.tree.leaves(leaves), strict=True):
        assert len(spec) == leaf.ndim


def test_normalize_input():
    audio = load_file(ASSETS.parent / "audio" / "golden.safetensors")
    samples = audio["w2vnorm/in"].astype(np.float32)
    close(model.normalize_input(samples[None]), audio["w2vnorm/out"], 1e-6)
    batch = np.stack([samples, np.where(np.arange(len(samples)) < 2000, samples, 0.3)])
    close(model.normalize_input(batch, np.array([len(samples), 2000])), audio["w2vnorm/batch_out"], 1e-6)
