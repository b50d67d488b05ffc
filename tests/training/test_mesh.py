"""Steps of all trainings are the same computation on every mesh: losses, and every tensor of the state."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from helpers.quick_compile import quickly
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.config import DiscriminatorConfig, Qwen2Config, VocosConfig
from spark_jax.data import tokens
from spark_jax.data.config import AudioDataConfig, CodecDataConfig, TokenDataConfig
from spark_jax.shared.pytree import flatten
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.program import codec_program
from spark_jax.training.config import MeshConfig
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.ctc.program import ctc_program
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.llm.program import llm_program
from spark_jax.training.optimizer import OptimizerConfig

MESHES = [
    pytest.param((8, 1, 1), marks=pytest.mark.extended),
    pytest.param((1, 8, 1), marks=pytest.mark.extended),
    (2, 2, 2),
]
STEPS = 5
# Adam's epsilon is large: some biases have no gradient in exact arithmetic (those that a normalization takes out again;
# keys' have almost none), and with 1e-8 Adam makes whole steps of their rounding errors, which no two orders of
# summation share.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=2, eps=1e-4)

LLM_SYSTEM = dataclasses.replace(
    tiny(),
    llm=Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    ),
)
LLM = LLMTrainingConfig(
    accumulate=2,
    loss_chunk=20,
    optimizer=dataclasses.replace(OPTIMIZER, weight_decay=0.1),
    data=TokenDataConfig(row_length=24, batch_rows=8),
)
# As tiny(), with sizes that eight devices divide.
CODEC_SYSTEM = dataclasses.replace(
    tiny(),
    bicodec=dataclasses.replace(
        tiny().bicodec,
        encoder=VocosConfig(16, 16, 24, 1, 24),
        quantizer=dataclasses.replace(tiny().bicodec.quantizer, input_dim=24, codebook_dim=8),
        prenet=VocosConfig(24, 16, 24, 1, 24, condition_dim=24),
        postnet=VocosConfig(24, 16, 24, 1, 16),
    ),
)
CODEC = BiCodecTrainingConfig(
    d_vector_train_start=2,
    discriminator=DiscriminatorConfig(
        periods=(3,),
        period_channels=(4, 4),
        fft_sizes=(128,),
        hop_lengths=(32,),
        window_lengths=(100,),
        bands=(0.0, 0.5, 1.0),
        spectral_channels=2,
    ),
    data=CodecDataConfig(segment_seconds=0.1, context_seconds=0.02, batch_segments=8),
    generator_optimizer=OPTIMIZER,
    discriminator_optimizer=OPTIMIZER,
)


def llm_batch(shapes, rng):
    """Rows of two segments and padding, with an uneven share of targets."""
    batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    for row in range(len(batch["input_ids"])):
        first, second = rng.integers(4, 12, 2)
        for segment, (start, end) in enumerate(((0, first), (first, first + second)), 1):
            ids = rng.integers(1, LLM_SYSTEM.llm.vocab_size, end - start)
            batch["input_ids"][row, start:end] = ids
            batch["targets"][row, start : end - 1] = ids[1:]
            batch["classes"][row, start + 2 : end - 1] = rng.integers(1, 4, end - start - 3)
            batch["positions"][row, start:end] = np.arange(end - start)
            batch["segment_ids"][row, start:end] = segment
            batch["tasks"][row, start : end - 1] = segment * (batch["classes"][row, start : end - 1] != tokens.NONE)
    return batch


def codec_batch(shapes, rng):
    return {name: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype) for name, leaf in shapes.items()}


def without_zeros(params):
    """Random values for what starts as zeros: nothing is measured against its own rounding errors alone."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x if x.any() else rng.normal(0, 0.1, x.shape).astype(x.dtype), params)


def run(make_program, config, system, make_batch, mesh, steps=STEPS):
    """Metrics of every step, and the state after them."""
    config = dataclasses.replace(config, mesh=MeshConfig(*mesh))
    program = make_program(config, system, jax.devices()[: np.prod(mesh)])
    state, shardings = sharding.initialize(program.mesh, program.init)
    state = jax.device_put(state.replace(params=without_zeros(jax.device_get(state.params))), shardings)
    train_step = quickly(program.jit_step(shardings))
    history = []
    for seed in range(steps):
        batch = make_batch(program.batch, np.random.default_rng(seed))
        state, metrics = train_step(state, sharding.put_batch(program.mesh, batch))
        history.append(jax.device_get(metrics))
    return history, state


def check(found, expected):
    """Losses within 1e-5; by norm within 1e-4 each parameter and statistic, and all moments together."""
    history, expected_history = found[0], expected[0]
    state, expected_state = jax.device_get((found[1], expected[1]))
    for number, (ours, theirs) in enumerate(zip(history, expected_history, strict=True)):
        assert abs(ours["loss"] - theirs["loss"]) <= 1e-5 * abs(theirs["loss"]), (number, ours, theirs)
    ours, theirs = (flatten((each.params, each.collections)) for each in (state, expected_state))
    distances = {name: np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]) for name in theirs}
    problems = {name: float(distance) for name, distance in distances.items() if not distance <= 1e-4}
    assert not problems, "\n".join(f"{name}: {distance:.1e}" for name, distance in problems.items())
    difference = optax.tree.norm(jax.tree.map(np.subtract, state.opt_state, expected_state.opt_state))
    assert difference <= 1e-4 * optax.tree.norm(expected_state.opt_state)


@pytest.fixture(scope="module")
def llm_alone():
    return run(llm_program, LLM, LLM_SYSTEM, llm_batch, (1, 1, 1))


@pytest.mark.parametrize("mesh", MESHES)
def test_the_language_model(llm_alone, mesh):
    found = run(llm_program, LLM, LLM_SYSTEM, llm_batch, mesh)
    check(found, llm_alone)
    for ours, theirs in zip(found[0][:2], llm_alone[0][:2], strict=True):
        assert ours.keys() == theirs.keys() and theirs["targets_tts"] > 20
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, err_msg=name)
    if mesh == (2, 2, 2):
        kernel = lambda tree: tree["layers"]["mlp"]["gate"]["kernel"].sharding.spec  # noqa: E731
        assert kernel(found[1].params) == kernel(found[1].opt_state[1][0].mu) == jax.P(None, "fsdp", "tensor")


@pytest.fixture(scope="module")
def codec_alone():
    return run(codec_program, CODEC, CODEC_SYSTEM, codec_batch, (1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_the_codec_with_its_discriminators(codec_alone, mesh):
    check(run(codec_program, CODEC, CODEC_SYSTEM, codec_batch, mesh), codec_alone)


CTC_SYSTEM = dataclasses.replace(
    tiny(),
    wav2vec2=dataclasses.replace(
        tiny().wav2vec2,
        num_hidden_layers=1,
        feature_layers=(1,),
        conv_dim=(8, 8),
        conv_kernel=(240, 2),
        conv_stride=(160, 2),
    ),
)
CTC = CTCTrainingConfig(
    data=AudioDataConfig(bucket_seconds=(0.2,), batch_seconds=1.6), optimizer=OPTIMIZER, target="text"
)


def ctc_batch(shapes, rng):
    """Noise of several lengths with a few labels each; one row is empty, as the last ones of an epoch can be."""
    batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    for row in range(len(batch["samples"]) - 1):
        length, labels = int(rng.integers(2000, 3200)), int(rng.integers(1, 3))
        batch["samples"][row, :length], batch["lengths"][row] = rng.normal(0, 0.3, length), length
        batch["targets"][row, :labels], batch["target_lengths"][row] = rng.integers(1, 8, labels), labels
    return batch


def test_the_recognizer():
    program = lambda config, system, devices: ctc_program(config, system, devices, vocabulary_size=8)  # noqa: E731
    alone, shared = (run(program, CTC, CTC_SYSTEM, ctc_batch, mesh, steps=2) for mesh in ((1, 1, 1), (2, 2, 2)))
    assert alone[0][0]["skipped"] == 0 and alone[0][1]["loss"] != alone[0][0]["loss"]
    check(shared, alone)
