"""What a training compiles: one place that makes it from a configuration, for train/ and for `spark-jax plan`.

A program holds no arrays. The entry points run it on the devices there are, `spark-jax plan` compiles the same one for
devices that are elsewhere.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spark_jax import sharding
from spark_jax.bicodec.discriminator import Discriminators
from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.data.codec import whole_tokens
from spark_jax.errors import SparkError
from spark_jax.nn.attention import choose_backend
from spark_jax.qwen2.model import Qwen2
from spark_jax.shared.config_files import find_config, load_config, read_yaml
from spark_jax.training import step
from spark_jax.training.codec import step as codec_step
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.config import LoopConfig, MeshConfig
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.optimizer import make_optimizer
from spark_jax.training.state import TrainState, new_state
from spark_jax.wav2vec2.model import Wav2Vec2

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A training without its data.

    Attributes:
      mesh: the devices.
      init: makes the fresh state with Linen's boxes, for `loop.initialize_or_restore`.
      step: (state, batch) → (state, metrics), not jitted: the step that most of the run consists of.
      evaluation: (state, batch) → values of one validation batch, not jitted.
      batch: shapes and types of a step's global batch.
      rate: the metric that counts work.
      early_step: what stands for `step` before step number `switch_at`.
      options: for the compiler, `sharding.compiler_options`.
    """

    mesh: Mesh
    init: Callable[[], TrainState]
    step: Step
    evaluation: Callable[[TrainState, Any], Any]
    batch: Mapping[str, jax.ShapeDtypeStruct]
    rate: str
    early_step: Step | None = None
    switch_at: int = 0
    options: Mapping[str, int] | None = None

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        boxed = jax.eval_shape(self.init)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            sharding.unbox(boxed),
            sharding.tree_shardings(self.mesh, boxed),
        )

    def check_best_metric(self, loop: LoopConfig, metrics: Callable[[Any], Mapping[str, Any]] = dict) -> None:
        """Before the first step, not at the first evaluation.

        Args:
          metrics: what the validation makes of `evaluation`'s values.

        Raises:
          SparkError: `loop.best_metric` is none of them.
        """
        if not loop.keep_best:
            return
        state = self.abstract_state()
        evaluation = self.jit_evaluation(jax.tree.map(lambda leaf: leaf.sharding, state))
        found = jax.eval_shape(lambda state, batch: metrics(evaluation(state, batch)), state, dict(self.batch))
        known = [name for name, value in found.items() if value.shape == ()]
        if loop.best_metric not in known:
            raise SparkError(f"loop.best_metric is {loop.best_metric!r}, expected one of {', '.join(known)}")

    def jit_late_step(self, shardings: TrainState) -> Any:
        """`step` alone, jitted: what can be traced and compiled ahead of time."""
        return sharding.jit_step(self.step, self.mesh, shardings, self.options)

    def jit_step(self, shardings: TrainState, start: int = 0) -> Step:
        """The step of a run that goes on from step number `start`."""
        late = self.jit_late_step(shardings)
        if self.early_step is None:
            return late
        early = sharding.jit_step(self.early_step, self.mesh, shardings, self.options)
        numbers = itertools.count(start)
        return lambda state, batch: (late if next(numbers) >= self.switch_at else early)(state, batch)

    def jit_evaluation(self, shardings: TrainState) -> Callable[[TrainState, Any], Any]:
        return sharding.jit_eval(self.evaluation, self.mesh, shardings, self.options)


def llm_program(config: LLMTrainingConfig, system: SparkConfig, devices: Sequence[jax.Device] | None = None) -> Program:
    """The language model's training; `devices` None: those of this process group.

    Raises:
      SparkError: a mesh that does not fit the devices or the batch; attention that the devices do not have.
    """
    mesh = _mesh(config.mesh, devices)
    _check_rows("data.batch_rows", config.data.batch_rows, mesh)
    dtype = jnp.dtype(config.dtype)
    attention = choose_backend(config.attention, mesh, dtype)
    model = Qwen2(system.llm, dtype, config.unroll_layers, attention, config.remat)
    optimizer = make_optimizer(config.optimizer, config.loop.steps)

    def init() -> TrainState:
        variables = model.init(jax.random.key(config.loop.seed), jnp.zeros((1, 2), jnp.int32))
        return new_state({"params": variables["params"]}, optimizer.init)

    sums = step.llm_evaluation(model, config.loss_chunk)
    shape = (config.data.batch_rows * config.accumulate, config.data.row_length)
    types = dict.fromkeys(("input_ids", "targets", "positions", "segment_ids"), jnp.int32)
    types |= dict.fromkeys(("classes", "tasks"), jnp.int8)
    return Program(
        mesh=mesh,
        init=init,
        step=step.llm_step(model, optimizer, config.accumulate, config.loss_chunk),
        evaluation=lambda state, batch: sums(state.params, batch),
        batch={name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in types.items()},
        rate="tokens",
        options=sharding.compiler_options(mesh, config.mesh.cpu_block_mb),
    )


def codec_program(
    config: BiCodecTrainingConfig, system: SparkConfig, devices: Sequence[jax.Device] | None = None
) -> Program:
    """The codec's training: without discriminators before `adversarial_start`, with them after.

    Raises:
      SparkError: a mesh that does not fit the devices or the batch; options that exclude each other.
    """
    if config.data.whole_utterances and config.phase != "features":
        raise SparkError(f'data.whole_utterances: phase is {config.phase!r}, expected "features"')
    mesh = _mesh(config.mesh, devices)
    _check_rows("data.batch_segments", config.data.batch_segments, mesh)
    models = codec_models(config, system)
    plain, adversarial = (codec_step.codec_step(models, config, system, flag) for flag in (False, True))
    return Program(
        mesh=mesh,
        init=lambda: codec_step.init_state(models, config, system),
        step=adversarial if config.adversarial else plain,
        evaluation=codec_step.codec_evaluation(models, config, system),
        batch=_codec_batch(config, system),
        rate="audio_seconds",
        early_step=plain if config.adversarial and config.adversarial_start > 0 else None,
        options=sharding.compiler_options(mesh, config.mesh.cpu_block_mb),
        switch_at=(config.adversarial_start or 0) if config.adversarial else 0,
    )


def codec_models(config: BiCodecTrainingConfig, system: SparkConfig) -> codec_step.CodecModels:
    dtype = jnp.dtype(config.dtype)
    return codec_step.CodecModels(
        codec=BiCodec(system.bicodec, dtype, config.remat),
        extractor=None if config.phase == "wave" else Wav2Vec2(system.wav2vec2, dtype),
        discriminators=Discriminators(config.discriminator, config.remat, dtype) if config.adversarial else None,
        generator_optimizer=make_optimizer(config.generator_optimizer, config.loop.steps),
        discriminator_optimizer=make_optimizer(config.discriminator_optimizer, config.loop.steps),
    )


PROGRAMS = {LLMTrainingConfig: llm_program, BiCodecTrainingConfig: codec_program}


def load_training(path: str | Path, overrides: Sequence[str] = ()) -> LLMTrainingConfig | BiCodecTrainingConfig:
    """The configuration of whichever training has the file's keys.

    Raises:
      SparkError: the file cannot be read, or fits none.
    """
    try:
        found = read_yaml(find_config(path))
    except SparkError:
        found = None
    keys = set(found) if isinstance(found, dict) else set()
    known = {cls: len(keys & {field.name for field in dataclasses.fields(cls)}) for cls in PROGRAMS}
    return load_config(max(known, key=known.get), path, overrides)  # which tells what is wrong with the file


def _codec_batch(config: BiCodecTrainingConfig, system: SparkConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """What `data.codec.CodecExamples.load` gives."""
    data, rows = config.data, config.data.batch_segments
    segment = whole_tokens("data.segment_seconds", data.segment_seconds, system)
    context = whole_tokens("data.context_seconds", data.context_seconds, system)
    floats = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.float32)  # noqa: E731
    ids = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.int32)  # noqa: E731
    if config.phase == "wave":
        return {
            "wave": floats(segment),
            "semantic_ids": ids(segment // system.latent_hop_length),
            "global_ids": ids(system.bicodec.speaker_encoder.token_num),
        }
    batch = {"wave": floats(segment), "reference": floats(system.ref_segment_samples)}
    if data.whole_utterances:
        return batch | {"input_values": floats(segment), "lengths": ids()}
    return batch | {"input_values": floats(segment + 2 * context)}


def _mesh(config: MeshConfig, devices: Sequence[jax.Device] | None) -> Mesh:
    return sharding.make_mesh(config.data, config.fsdp, config.tensor, devices)


def _check_rows(name: str, rows: int, mesh: Mesh) -> None:
    parts = mesh.shape[sharding.DATA] * mesh.shape[sharding.FSDP]
    if rows % parts:
        raise SparkError(f"{name} is {rows}, expected a multiple of {parts}, the devices on data and fsdp")
