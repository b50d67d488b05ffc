"""The codec's training as a program: models, fresh state, steps without and with discriminators, evaluation, batch."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.data.codec import whole_tokens
from spark_jax.errors import SparkError
from spark_jax.performance import flops
from spark_jax.training import program
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.evaluation import codec_evaluation
from spark_jax.training.codec.models import codec_models
from spark_jax.training.codec.state import init_state
from spark_jax.training.codec.step import codec_step
from spark_jax.training.optimizer import make_schedule


def codec_program(
    config: BiCodecTrainingConfig, system: SparkConfig, devices: Sequence[jax.Device] | None = None
) -> program.Program:
    """Returns the codec's training: without discriminators before `adversarial_start`, with them from then on.

    Args:
      devices: to train on; None: all of this run's processes.

    Raises:
      SparkError: a mesh that does not fit the devices or the batch; options that exclude each other.
    """
    if config.data.whole_utterances and config.phase != "features":
        raise SparkError(f'data.whole_utterances: phase is {config.phase!r}, expected "features"')
    mesh = program.make_mesh(config.mesh, devices)
    program.check_rows("data.batch_segments", config.data.batch_segments, mesh)
    models = codec_models(config, system)
    plain, adversarial = (codec_step(models, config, system, flag) for flag in (False, True))
    start = (config.adversarial_start or 0) if config.adversarial else 0
    return program.Program(
        mesh=mesh,
        init=lambda: init_state(models, config, system),
        step=adversarial if config.adversarial else plain,
        evaluation=codec_evaluation(models, config, system),
        batch=_batch(config, system),
        rate="audio_seconds",
        schedules=_schedules(config),
        early_step=plain if start > 0 else None,
        switch_at=start,
        options=sharding.compiler_options(mesh, config.mesh.cpu_block_mb),
    )


@functools.lru_cache(maxsize=4)
def codec_step_flops(config: BiCodecTrainingConfig, system: SparkConfig) -> float:
    """Returns the useful operations of one step, counted in the step itself.

    Which products a step has depends on the phase, on the frozen parts and on who plays; a formula would have to
    repeat all of that.
    """
    # Nothing that is computed twice, and one device, as nothing is divided here.
    mesh = dataclasses.replace(config.mesh, data=1, fsdp=1, tensor=1)
    alone = codec_program(dataclasses.replace(config, mesh=mesh, remat=False), system)
    return flops.traced_flops(alone.step, alone.abstract_state(), alone.batch)


def _schedules(config: BiCodecTrainingConfig) -> dict[str, program.Schedule]:
    """Discriminators count their updates from their first one."""
    rates = {"learning_rate": make_schedule(config.generator_optimizer, config.loop.steps)}
    if config.adversarial:
        rate = make_schedule(config.discriminator_optimizer, config.loop.steps)
        rates["discriminator_learning_rate"] = lambda updates: rate(max(updates - config.adversarial_start, 0))
    return rates


def _batch(config: BiCodecTrainingConfig, system: SparkConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """What `data.codec.CodecExamples.load` gives."""
    data, rows = config.data, config.data.batch_segments
    segment = whole_tokens("data.segment_seconds", data.segment_seconds, system)
    context = whole_tokens("data.context_seconds", data.context_seconds, system)
    floats = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.float32)  # noqa: E731
    ids = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.int32)  # noqa: E731
    tokens, reference = segment // system.latent_hop_length, floats(system.ref_segment_samples)
    pitch = {}
    if config.needs_pitch(system):
        pitch = {"f0": floats(tokens), "f0_filled": floats(tokens), "f0_mean": floats()}
    if config.phase == "wave":
        batch = {"wave": floats(segment), "semantic_ids": ids(tokens)} | pitch
        if config.reference_clips:
            return batch | {"reference": reference}
        return batch | {"global_ids": ids(system.bicodec.speaker_encoder.token_num)}
    batch = {"wave": floats(segment), "reference": reference} | pitch
    if data.whole_utterances:
        return batch | {"input_values": floats(segment), "lengths": ids()}
    return batch | {"input_values": floats(segment + 2 * context)}
