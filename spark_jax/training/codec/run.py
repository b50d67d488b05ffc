"""Trains BiCodec by the GAN recipe, at any size.

    spark-jax train codec configs/tiny_bicodec.yaml --output runs/bicodec [--set loop.steps=100]

Writes checkpoints, metrics.jsonl, data.json (utterances, and what was dropped), at every evaluation the part `codec`
(parameters, batch-norm statistics and code usage: what inference and `init_from` load), and sounds and spectrograms
to TensorBoard.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.data import audio_sources, pipeline, sources
from spark_jax.data.codec import CodecExamples
from spark_jax.performance.flops import codec_step_flops
from spark_jax.performance.hardware import peak_flops
from spark_jax.shared import distributed
from spark_jax.shared.config_files import load_config
from spark_jax.training import checkpoint, entry, loop
from spark_jax.training.codec import step as codec_step
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.optimizer import make_schedule
from spark_jax.training.program import codec_program
from spark_jax.training.samples import SampleWriter
from spark_jax.training.state import TrainState


def train(config: BiCodecTrainingConfig, output: Path) -> TrainState:
    system = load_config(SparkConfig, config.model)
    program = codec_program(config, system)
    program.check_best_metric(config.loop)
    mesh, data = program.mesh, config.data
    wave = config.phase == "wave"
    examples, validation = (
        CodecExamples(
            audio_sources.read_sources(config.corpus, system, data, split, config.tokens if wave else None),
            system,
            data.segment_seconds,
            data.context_seconds,
            data.high_pass_hz,
            data.keep_in_memory,
            data.whole_utterances,
            from_tokens=wave,
        )
        for split in (data.train_split, data.evaluation_split)
    )
    place = output / "data.json" if distributed.is_primary() else None
    report = sources.DataReport(place, {"train": examples, "validation": validation})
    distributed.log(report.line())
    share, shares = sharding.batch_share(mesh)
    batches = pipeline.batches(
        examples.plan(data.batch_segments, config.loop.seed),
        examples.load,
        config.loop.steps,
        config.loop.seed,
        threads=data.threads,
        prefetch=data.prefetch,
        process_index=share,
        process_count=shares,
    )
    validation_batches = pipeline.evaluation_batches(
        validation.plan(data.batch_segments, config.loop.seed),
        validation.load,
        data.evaluation_batches,
        process_index=share,
        process_count=shares,
        threads=data.threads,
    )

    checkpoints = checkpoint.Checkpoints.of_run(output, config.loop)
    state, shardings = loop.initialize_or_restore(mesh, program.init, checkpoints, batches)
    if checkpoints.latest_step is None:
        state = codec_step.with_pretrained(state, shardings, load_pretrained(state, config))
    distributed.log(summary(state, config, mesh))
    evaluate_batch = program.jit_evaluation(shardings)
    samples = SampleWriter(output / "tensorboard" / "samples", system.sample_rate)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        checkpoint.save_params(output / "codec", codec_step.codec_variables(state))
        results = []
        for i, batch in enumerate(validation_batches):
            result = jax.device_get(evaluate_batch(state, sharding.put_batch(mesh, batch)))
            pairs = result.pop("samples", None)
            if i == 0 and pairs is not None:
                samples.write(int(state.step), *pairs)
            results.append(result)
        return {name: float(np.mean([result[name] for result in results])) for name in results[0]}

    peak = peak_flops(mesh.devices.flat[0])
    step_flops = codec_step_flops(config, system) if peak else None
    state = loop.fit(
        state,
        program.jit_step(shardings, int(state.step)),
        batches,
        config=config.loop,
        checkpoints=checkpoints,
        directory=output,
        put=lambda batch: sharding.put_batch(mesh, batch),
        evaluate=evaluate,
        rate=program.rate,
        schedules=schedules(config),
        counts=report.update,
        parts=("codec",),
        flops_per_step=lambda _: step_flops,
        peak_flops=peak,
    )
    checkpoints.close()
    samples.close()
    return state


def schedules(config: BiCodecTrainingConfig) -> dict[str, Callable[[int], Any]]:
    """Learning rates as functions of the steps made; discriminators count theirs from their first one."""
    steps = config.loop.steps
    rates = {"learning_rate": make_schedule(config.generator_optimizer, steps)}
    if config.adversarial:
        rate = make_schedule(config.discriminator_optimizer, steps)
        rates["discriminator_learning_rate"] = lambda step: rate(max(step - config.adversarial_start, 0))
    return rates


def load_pretrained(state: TrainState, config: BiCodecTrainingConfig) -> dict[str, Any]:
    """The parts that the configuration names, checked against the state's shapes and placed as it is."""
    pretrained = {}
    if config.wav2vec2 is not None and "wav2vec2" in state.params:
        pretrained["wav2vec2"] = checkpoint.load_params(config.wav2vec2, _shapes(state.params["wav2vec2"]))
    if config.init_from is not None:
        pretrained["codec"] = checkpoint.load_params(config.init_from, _shapes(codec_step.codec_variables(state)))
    return pretrained


def summary(state: TrainState, config: BiCodecTrainingConfig, mesh: jax.sharding.Mesh) -> str:
    millions = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6 for name, tree in state.params.items()}
    counts = ", ".join(f"{name} {count:.2f} M" for name, count in millions.items())
    return f"parameters: {counts}; frozen {config.frozen_parts}; mesh {dict(mesh.shape)}"


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


if __name__ == "__main__":
    entry.run(BiCodecTrainingConfig, train, __doc__)
