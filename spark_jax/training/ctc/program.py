"""The recognizer's training as a program: model, optimizer, fresh state, step, evaluation and batch."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.data.speech import bucket_rows, bucket_targets
from spark_jax.performance import flops
from spark_jax.training import program
from spark_jax.training.ctc import step
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.optimizer import make_optimizer, make_schedule
from spark_jax.training.state import TrainState, new_state
from spark_jax.wav2vec2.ctc import Wav2Vec2ForCTC
from spark_jax.wav2vec2.fourier import fourier_kernel
from spark_jax.wav2vec2.model import num_frames

# Of a corpus that is not at hand, as for `spark-jax plan`.
USUAL_VOCABULARY = 64  # labels, the blank included
USUAL_LABELS_A_SECOND = 15


def ctc_program(
    config: CTCTrainingConfig,
    system: SparkConfig,
    devices: Sequence[jax.Device] | None = None,
    vocabulary_size: int = USUAL_VOCABULARY,
    target_length: int | None = None,
) -> program.Program:
    """Returns the recognizer's training.

    Batches have one shape for each bucket of duration; the program's is that of the longest utterances, which takes
    most memory.

    Args:
      devices: to train on; None: all of this run's processes.
      vocabulary_size: labels of the corpus, the blank included.
      target_length: labels of a row of the longest bucket; None: those of usual speech.

    Raises:
      SparkError: a mesh that does not fit the devices.
    """
    mesh = program.make_mesh(config.mesh, devices)
    model = Wav2Vec2ForCTC(system.wav2vec2, vocabulary_size, pitch_head=config.pitch_weight > 0)
    optimizer = make_optimizer(config.optimizer, config.loop.steps)

    def init() -> TrainState:
        variables = model.init(jax.random.key(config.loop.seed), jnp.zeros((1, system.sample_rate)))
        params = variables["params"]
        if config.fourier_front_end:
            _start_as_fourier_bank(params, system.sample_rate)
        return new_state({"params": params}, optimizer.init)

    return program.Program(
        mesh=mesh,
        init=init,
        step=step.ctc_step(model, optimizer, system.sample_rate, config.pitch_weight),
        evaluation=step.ctc_evaluation(model),
        batch=_batch(config, system, program.row_multiple(mesh), target_length),
        rate="audio_seconds",
        schedules={"learning_rate": make_schedule(config.optimizer, config.loop.steps)},
        options=sharding.compiler_options(mesh, config.mesh.cpu_block_mb),
    )


def ctc_step_flops(config: CTCTrainingConfig, system: SparkConfig) -> float:
    """Returns the useful operations of one step on the longest utterances, counted in the step itself."""
    alone = ctc_program(config, system, jax.devices()[:1])
    return flops.traced_flops(alone.step, alone.abstract_state(), alone.batch)


def _start_as_fourier_bank(params: Any, sample_rate: int) -> None:
    convolution = params["wav2vec2"]["feature_extractor"]["conv_0"]
    length, _, channels = convolution["kernel"].unbox().shape
    bank = fourier_kernel(length, channels, sample_rate)
    convolution["kernel"] = convolution["kernel"].replace_boxed(jnp.asarray(bank))


def _batch(
    config: CTCTrainingConfig, system: SparkConfig, row_multiple: int, target_length: int | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """What `data.speech.SpeechExamples.load` gives of the longest bucket."""
    seconds = config.data.bucket_seconds[-1]
    rows = bucket_rows(seconds, config.data.batch_seconds, row_multiple)
    samples = round(seconds * system.sample_rate)
    if target_length is None:
        target_length = bucket_targets(round(seconds * USUAL_LABELS_A_SECOND))
    ids = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.int32)  # noqa: E731
    batch = {
        "samples": jax.ShapeDtypeStruct((rows, samples), jnp.float32),
        "lengths": ids(),
        "targets": ids(target_length),
        "target_lengths": ids(),
    }
    frames = num_frames(samples, system.wav2vec2)
    if config.aligned:
        batch["path"] = ids(frames)
    if config.pitch_weight > 0:
        batch["f0"] = jax.ShapeDtypeStruct((rows, frames), jnp.float32)
    return batch
