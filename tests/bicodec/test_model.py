"""BiCodec against the reference's goldens, evaluation mode; masks, initialization, sharding."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.quick_compile import quick_jit
from helpers.tiny_config import tiny

from spark_jax.audio.mel import mel_spectrogram
from spark_jax.bicodec.fsq import FiniteScalarQuantizer
from spark_jax.bicodec.model import BiCodec
from spark_jax.bicodec.quantize import code_distances
from spark_jax.bicodec.wave_generator import WaveGenerator
from spark_jax.config import WaveGeneratorConfig

# Golden → (module whose output it is, index into a tuple of outputs, transposed to [batch, channel, time]).
INTERMEDIATES = {
    "ecapa_layer1": ("speaker_encoder/ecapa/layer_1", None, True),
    "ecapa_layer2": ("speaker_encoder/ecapa/layer_2", None, True),
    "ecapa_layer2_sub0": ("speaker_encoder/ecapa/layer_2/conv_in", None, True),
    "ecapa_layer2_sub1": ("speaker_encoder/ecapa/layer_2/res2", None, True),
    "ecapa_layer2_sub2": ("speaker_encoder/ecapa/layer_2/conv_out", None, True),
    "ecapa_layer2_sub3": ("speaker_encoder/ecapa/layer_2/gate", None, True),
    "ecapa_layer3": ("speaker_encoder/ecapa/layer_3", None, True),
    "ecapa_layer4": ("speaker_encoder/ecapa/layer_4", None, True),
    "ecapa_latent": ("speaker_encoder/ecapa", 1, True),
    "ecapa_pool": ("speaker_encoder/ecapa/pool", None, False),
    "x_vector": ("speaker_encoder/ecapa", 0, False),
    "perceiver_context": ("speaker_encoder/perceiver/proj_context", None, False),
    "perceiver_attn0": ("speaker_encoder/perceiver/attention_0", None, False),
    "perceiver_ff0": ("speaker_encoder/perceiver/feed_forward_0", None, False),
    "perceiver_out": ("speaker_encoder/perceiver", None, False),
    "fsq_project_in": ("speaker_encoder/quantizer/project_in", None, False),
    "fsq_out": ("speaker_encoder/quantizer", 0, True),
    "fsq_indices": ("speaker_encoder/quantizer", 1, False),
    "d_vector": ("speaker_encoder/project", None, False),
    "encoder_embed": ("encoder/backbone/embed", None, True),
    "encoder_block0": ("encoder/backbone/block_0", None, True),
    "encoder_backbone": ("encoder/backbone", None, False),
    "encoder_sampling0": ("encoder/stage_0/sampling", None, True),
    "encoder_downsample": ("encoder/stage_1/backbone", None, False),
    "encoder_z": ("encoder", None, True),
    "z_e": ("quantizer/in_project", None, True),
    "z_q": ("quantizer/out_project", None, True),
    "prenet_linear_pre": ("prenet/linear_in", None, False),
    "prenet_downsample": ("prenet/stage_1/backbone", None, False),
    "prenet_adanorm": ("prenet/backbone/norm", None, False),
    "prenet_block0": ("prenet/backbone/block_0", None, True),
    "prenet_out": ("prenet", None, True),
    "pred_feat": ("postnet", None, True),
    "decoder_stage0": ("wave_generator/conv_in", None, True),
    "decoder_stage1": ("wave_generator/block_0", None, True),
    "decoder_stage1_sub0": ("wave_generator/block_0/snake", None, True),
    "decoder_stage1_sub1": ("wave_generator/block_0/upsample", None, True),
    "decoder_stage1_sub2": ("wave_generator/block_0/unit_0", None, True),
    "decoder_stage2": ("wave_generator/block_1", None, True),
    "decoder_stage3": ("wave_generator/block_2", None, True),
    "decoder_stage4": ("wave_generator/block_3", None, True),
    "decoder_stage6": ("wave_generator/conv_out", None, True),
}


# Half the time to compile; the goldens are compared under the optimizations that users get.


def assert_close(actual, expected, tolerance=1e-5):
    """Largest difference relative to the largest expected value."""
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))


@pytest.fixture(scope="module")
def evaluated(codec, variables, golden):
    run = jax.jit(lambda v, f, r: codec.apply(v, f, r, train=False, capture_intermediates=True))
    return run(variables, golden["in/feat"], golden["in/ref_wav"])


def module_output(captured, path):
    node = captured["intermediates"]
    for name in path.split("/"):
        node = node[name]
    return node["__call__"][0]


@pytest.mark.parametrize("name", INTERMEDIATES)
def test_intermediate(evaluated, golden, name):
    path, index, transposed = INTERMEDIATES[name]
    actual = module_output(evaluated[1], path)
    actual = np.asarray(actual if index is None else actual[index])
    if transposed:
        actual = np.swapaxes(actual, 1, 2)
    expected = golden[f"eval/{name}"]
    assert_close(actual[: len(expected)], expected)  # the generator's stages were kept for the first item only


def test_outputs(codec, evaluated, golden):
    output = evaluated[0]
    assert np.max(np.abs(output.recons - golden["eval/recons"][:, 0])) < 1e-4
    assert_close(output.pred_feat, np.swapaxes(golden["eval/pred_feat"], 1, 2))
    assert_close(output.x_vector, golden["eval/x_vector"])
    assert_close(output.d_vector, golden["eval/d_vector"])
    assert_close(output.perplexity, golden["eval/perplexity"])
    assert output.active_num == golden["eval/active_num"]
    np.testing.assert_array_equal(output.semantic_ids, golden["eval/semantic_tokens"])
    np.testing.assert_array_equal(output.global_ids, golden["eval/global_tokens"][:, 0])
    mel = mel_spectrogram(jnp.asarray(golden["in/ref_wav"]), codec.config.mel_params)
    assert_close(mel, np.swapaxes(golden["eval/mel"], 1, 2))


def test_quantizer_internals(codec, variables, golden):
    z_e = np.swapaxes(golden["eval/z_e"], 1, 2)
    distances = code_distances(z_e.reshape(-1, 8)[:8], variables["params"]["quantizer"]["codebook"])
    assert_close(distances, golden["eval/dists_first8"])
    fsq = FiniteScalarQuantizer(codec.config.speaker_encoder.fsq_levels)
    codes, indices = fsq.quantize(golden["eval/fsq_project_in"])
    np.testing.assert_array_equal(indices, golden["eval/fsq_indices"][:, 0])
    assert_close(codes, golden["eval/fsq_codes"])
    assert_close(fsq.codes(indices), golden["eval/fsq_codes"])


def test_tokenize_and_detokenize(codec, variables, golden):
    ids = jax.jit(lambda v, f, r: codec.apply(v, f, r, method="tokenize"))(
        variables, golden["in/feat"], golden["in/ref_wav"]
    )
    np.testing.assert_array_equal(ids[0], golden["eval/semantic_tokens"])
    np.testing.assert_array_equal(ids[1], golden["eval/global_tokens"][:, 0])
    assert ids[0].dtype == ids[1].dtype == jnp.int32

    z_q = codec.apply(variables, ids[0], method=lambda m, i: m.quantizer.detokenize(i))
    assert_close(z_q, np.swapaxes(golden["eval/detok_z_q"], 1, 2))
    d_vector = codec.apply(variables, ids[1], method=lambda m, i: m.speaker_encoder.detokenize(i))
    assert_close(d_vector, golden["eval/detok_d_vector"])
    wave = jax.jit(lambda v, s, g: codec.apply(v, s, g, method="detokenize"))(variables, *ids)
    assert np.max(np.abs(wave - golden["eval/recons"][:, 0])) < 1e-4


@pytest.mark.extended
def test_gradient_in_evaluation(codec, variables, golden):
    def loss(features):
        output = codec.apply(variables, features, golden["in/ref_wav"], train=False)
        return jnp.mean(output.recons**2) + jnp.mean(output.pred_feat**2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(golden["in/feat"])
    assert_close(value, golden["evalgrad/loss"])
    assert_close(gradient, golden["evalgrad/grad_feat"], 1e-4)


def small_codec(**changes) -> BiCodec:
    """A codec that compiles fast: eight samples a token."""
    generator = WaveGeneratorConfig(input_channel=24, channels=16, rates=(4, 2), kernel_sizes=(8, 4))
    return BiCodec(dataclasses.replace(tiny().bicodec, decoder=generator, **changes))


def random_variables(codec, batch, time):
    """Random variables without compiling an initialization, features and reference waves."""
    random = np.random.default_rng(0)
    features = jnp.asarray(random.normal(size=(batch, time, codec.config.encoder.input_channels)), jnp.float32)
    reference = jnp.asarray(random.normal(size=(batch, 1600)), jnp.float32)
    shapes = jax.eval_shape(lambda: nn.unbox(codec.init(jax.random.key(0), features, reference, train=False)))
    # Positive around a half: norms, alphas, variances and layer scales all count, and none is near zero.
    variables = jax.tree.map(lambda x: jnp.asarray(0.5 + 0.1 * random.normal(size=x.shape), jnp.float32), shapes)
    centered = jax.tree.map(lambda x: x - 0.5 if x.ndim > 1 else x, variables["params"])
    return variables | {"params": centered}, features, reference


@pytest.mark.extended
@pytest.mark.parametrize("ratio", [1, 2])
def test_masked_batch_equals_single_items(ratio):
    config = tiny().bicodec
    codec = small_codec(
        encoder=dataclasses.replace(config.encoder, sample_ratios=(ratio, 1)),
        prenet=dataclasses.replace(config.prenet, sample_ratios=(1, ratio)),
    )
    lengths = (10, 6)
    variables, features, reference = random_variables(codec, batch=2, time=10)
    mask = jnp.arange(10) < jnp.asarray(lengths)[:, None]
    tokenize = quick_jit(lambda f, r, m: codec.apply(variables, f, r, m, method="tokenize"))
    detokenize = quick_jit(lambda s, g, m: codec.apply(variables, s, g, m, method="detokenize"))
    semantic, global_ids = tokenize(features, reference, mask)
    token_mask = mask[:, ::ratio]
    wave = detokenize(semantic, global_ids, token_mask)
    assert wave.shape == (2, 80)
    for i, length in enumerate(lengths):
        single, single_global = tokenize(features[i : i + 1, :length], reference[i : i + 1], None)
        np.testing.assert_array_equal(semantic[i, : length // ratio], single[0])
        np.testing.assert_array_equal(global_ids[i], single_global[0])
        single_wave = detokenize(single, single_global, None)[0]
        assert single_wave.shape == (8 * length,)
        np.testing.assert_allclose(wave[i, : 8 * length], single_wave, atol=1e-5)
        assert not np.any(wave[i, 8 * length :])


@pytest.mark.extended
def test_conditioning_switch_compiles_once():
    codec = small_codec()
    variables, features, reference = random_variables(codec, batch=2, time=4)
    traces = 0

    @jax.jit
    def run(on_x_vector):
        nonlocal traces
        traces += 1
        output = codec.apply(variables, features, reference, train=False, wave=False, condition_on_x_vector=on_x_vector)
        return output.pred_feat, output.recons

    with_d, recons = run(jnp.asarray(False))
    with_x, _ = run(jnp.asarray(True))
    assert traces == 1 and recons is None
    assert not np.allclose(with_d, with_x)


@pytest.mark.extended
def test_sharded_batch_has_global_statistics():
    codec = small_codec()
    variables, features, reference = random_variables(codec, batch=8, time=4)
    mutable = ["batch_stats", "code_statistics"]

    def run(features, reference):
        return codec.apply(variables, features, reference, train=True, wave=False, mutable=mutable)

    expected = jax.jit(run)(features, reference)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jax.NamedSharding(mesh, jax.P("data"))
    actual = jax.jit(run)(*jax.device_put((features, reference), batch))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), actual, expected)
    before, after = (float(v["code_statistics"]["quantizer"]["cluster_size"].sum()) for v in (variables, expected[1]))
    assert after == pytest.approx(0.99 * before + 0.01 * 8 * 4)


@pytest.mark.extended
def test_fresh_generator_neither_fades_nor_saturates():
    config = tiny().bicodec.decoder
    latents = jax.random.normal(jax.random.key(1), (2, 8, config.input_channel))
    generator = WaveGenerator(config)
    params = nn.unbox(quick_jit(generator.init)(jax.random.key(0), latents))

    def loss(params):
        wave = generator.apply(params, latents)
        return jnp.mean(jnp.abs(wave)), wave

    (_, wave), gradients = quick_jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert 1e-3 < float(jnp.std(wave)) < 0.5
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert 1e-8 < float(jnp.sqrt(jnp.mean(gradient**2))) < 10, path
