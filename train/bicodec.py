"""Trains BiCodec by the GAN recipe, at any size.

    python train/bicodec.py configs/tiny_bicodec.yaml --output runs/bicodec [--set loop.steps=100]

Writes checkpoints, metrics.jsonl, at every evaluation the part `codec` (parameters, batch-norm statistics and
code usage: what inference and `init_from` load), and sounds and spectrograms to TensorBoard.
"""

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spark_jax import compilation_cache, sharding
from spark_jax.bicodec.discriminator import Discriminators
from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.data import manifest, pipeline
from spark_jax.data.codec import CodecExamples, with_tokens
from spark_jax.errors import SparkError
from spark_jax.training import checkpoint, codec_step, entry, loop
from spark_jax.training.codec_config import BiCodecTrainingConfig
from spark_jax.training.config import load_config
from spark_jax.training.optimizer import make_optimizer
from spark_jax.training.samples import SampleWriter
from spark_jax.training.state import TrainState
from spark_jax.wav2vec2.model import Wav2Vec2


def train(config: BiCodecTrainingConfig, output: Path) -> TrainState:
    compilation_cache.enable()
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    system = load_config(SparkConfig, config.model)
    data = config.data
    if data.whole_utterances and config.phase != "features":
        raise SparkError(f'data.whole_utterances: phase is {config.phase!r}, expected "features"')
    examples, validation = (
        CodecExamples(
            read_records(config, system, split),
            system,
            data.segment_seconds,
            data.context_seconds,
            data.high_pass_hz,
            data.keep_in_memory,
            data.whole_utterances,
        )
        for split in (data.train_split, data.evaluation_split)
    )
    batches = pipeline.batches(
        examples.plan(data.batch_segments, config.loop.seed),
        examples.load,
        config.loop.steps,
        config.loop.seed,
        threads=data.threads,
        prefetch=data.prefetch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    validation_batches = pipeline.evaluation_batches(
        validation.plan(data.batch_segments, config.loop.seed), validation.load, data.evaluation_batches
    )

    models = make_models(config, system)
    checkpoints = checkpoint.Checkpoints(output / "checkpoints", config.loop.keep_checkpoints)
    state, shardings = loop.initialize_or_restore(
        mesh, lambda: codec_step.init_state(models, config, system), checkpoints, batches
    )
    if checkpoints.latest_step is None:
        state = codec_step.with_pretrained(state, shardings, load_pretrained(state, config))
    print(summary(state, config, mesh), file=sys.stderr)
    evaluate_batch = sharding.jit_eval(codec_step.codec_evaluation(models, config, system), mesh, shardings)
    samples = SampleWriter(output / "tensorboard" / "samples", system.sample_rate)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        checkpoint.save_params(output / "codec", codec_step.codec_variables(state))
        results = []
        for i, batch in enumerate(validation_batches):
            result = jax.device_get(evaluate_batch(state, sharding.put_batch(mesh, batch)))
            wave = result.pop("wave", None)
            if i == 0 and wave is not None:
                samples.write(int(state.step), batch["wave"][:4], wave[:4])
            results.append(result)
        return {name: float(np.mean([result[name] for result in results])) for name in results[0]}

    state = loop.fit(
        state, make_step(models, config, system, mesh, shardings, int(state.step)), batches,
        config=config.loop, checkpoints=checkpoints, directory=output,
        put=lambda batch: sharding.put_batch(mesh, batch), evaluate=evaluate, rate="audio_seconds",
    )  # fmt: skip
    checkpoints.close()
    samples.close()
    return state


def read_records(config: BiCodecTrainingConfig, system: SparkConfig, split: str) -> list[dict[str, Any]]:
    """The utterances of a split; in phase "wave" with their tokens."""
    records = manifest.read_corpus(config.corpus, split)
    if config.phase != "wave":
        return records
    if config.tokens is None:
        raise SparkError('phase "wave": tokens is not set, expected a file of tools/encode_corpus.py')
    return with_tokens(records, config.tokens, config.data.segment_seconds, system)


def make_models(config: BiCodecTrainingConfig, system: SparkConfig) -> codec_step.CodecModels:
    return codec_step.CodecModels(
        codec=BiCodec(system.bicodec, remat=config.remat),
        extractor=None if config.phase == "wave" else Wav2Vec2(system.wav2vec2),
        discriminators=Discriminators(config.discriminator, config.remat) if config.adversarial else None,
        generator_optimizer=make_optimizer(config.generator_optimizer, config.loop.steps),
        discriminator_optimizer=make_optimizer(config.discriminator_optimizer, config.loop.steps),
    )


def load_pretrained(state: TrainState, config: BiCodecTrainingConfig) -> dict[str, Any]:
    """The parts that the configuration names, checked against the state's shapes."""
    pretrained = {}
    if config.wav2vec2 is not None and "wav2vec2" in state.params:
        pretrained["wav2vec2"] = checkpoint.load_params(config.wav2vec2, _shapes(state.params["wav2vec2"]))
    if config.init_from is not None:
        pretrained["codec"] = checkpoint.load_params(config.init_from, _shapes(codec_step.codec_variables(state)))
    return pretrained


def make_step(
    models: codec_step.CodecModels,
    config: BiCodecTrainingConfig,
    system: SparkConfig,
    mesh: jax.sharding.Mesh,
    shardings: Any,
    start: int,
) -> Any:
    """The step of the loop: without discriminators before `adversarial_start`, with them after."""
    plain, adversarial = (
        sharding.jit_step(codec_step.codec_step(models, config, system, flag), mesh, shardings)
        for flag in (False, True)
    )
    steps = itertools.count(start)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        late = config.adversarial and next(steps) >= config.adversarial_start
        return (adversarial if late else plain)(state, batch)

    return step


def summary(state: TrainState, config: BiCodecTrainingConfig, mesh: jax.sharding.Mesh) -> str:
    millions = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6 for name, tree in state.params.items()}
    counts = ", ".join(f"{name} {count:.2f} M" for name, count in millions.items())
    return f"parameters: {counts}; frozen {config.frozen_parts}; mesh {dict(mesh.shape)}"


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


if __name__ == "__main__":
    entry.run(BiCodecTrainingConfig, train, __doc__)
