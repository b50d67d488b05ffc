"""Trains BiCodec by the GAN recipe, at any size.

    spark-jax train codec tiny_bicodec --output runs/bicodec [--set loop.steps=100]

The run's folder is a model directory with the part `bicodec` (parameters, batch-norm statistics and code usage),
written at every evaluation; with loop.keep_best so is `best`, of the least validation loss. Beside them: checkpoints,
metrics.jsonl, data.json (utterances, and what was dropped), and sounds and spectrograms for TensorBoard.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spark_jax import sharding
from spark_jax.data import audio_sources, pipeline
from spark_jax.data.codec import CodecExamples
from spark_jax.model_directory.directory import read_part, read_system
from spark_jax.performance.hardware import peak_flops
from spark_jax.shared import distributed
from spark_jax.training import loop
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.program import codec_program, codec_step_flops
from spark_jax.training.codec.state import codec_variables, with_pretrained
from spark_jax.training.run import Run, describe_parameters
from spark_jax.training.samples import SampleWriter
from spark_jax.training.state import TrainState


def train(config: BiCodecTrainingConfig, output: Path) -> TrainState:
    """Trains a codec, from the start or on from the newest checkpoint in `output`; returns the last state.

    Raises:
      SparkError: the configuration, the data or what it starts from is at fault, or a file cannot be written.
    """
    system = read_system(config.model)
    program = codec_program(config, system)
    program.check_best_metric(config.loop)

    data, wave, pitch = config.data, config.phase == "wave", config.needs_pitch(system)
    examples, validation = (
        CodecExamples(
            audio_sources.read_sources(config.corpus, system, data, split, config.tokens if wave else None, pitch),
            system,
            data.segment_seconds,
            data.context_seconds,
            data.high_pass_hz,
            data.keep_in_memory,
            data.whole_utterances,
            from_tokens=wave,
            reference_clips=config.reference_clips,
            pitch=pitch,
        )
        for split in (data.train_split, data.evaluation_split)
    )

    known = peak_flops(program.mesh.devices.flat[0]) is not None  # counting takes seconds
    flops = codec_step_flops(config, system) if known else None
    run = Run(output, program, system, config.loop, (lambda means: flops) if known else None)
    run.report_data({"train": examples, "validation": validation})
    batches = run.batches(examples.plan(data.batch_segments, config.loop.seed), examples.load, data)
    validation_batches = pipeline.evaluation_batches(
        validation.plan(data.batch_segments, config.loop.seed),
        validation.load,
        data.evaluation_batches,
        *run.share,
        threads=data.threads,
    )

    state, shardings = run.initialize_or_restore(batches)
    if run.is_new:
        state = with_pretrained(state, shardings, load_pretrained(state, config))
    counts = ", ".join(f"{name} {describe_parameters(tree)}" for name, tree in state.params.items())
    distributed.log(f"parameters: {counts}; frozen {config.frozen_parts}; mesh {dict(run.mesh.shape)}")
    evaluate_batch = program.jit_evaluation(shardings)
    samples = SampleWriter(output / "tensorboard" / "samples", system.sample_rate)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        run.write_parts({"bicodec": codec_variables(state)})
        results = []
        for i, batch in enumerate(validation_batches):
            result = jax.device_get(evaluate_batch(state, sharding.put_batch(run.mesh, batch)))
            pairs = result.pop("samples", None)
            if i == 0 and pairs is not None:
                samples.write(int(state.step), *pairs)
            results.append(result)
        return {name: float(np.mean([result[name] for result in results])) for name in results[0]}

    state = loop.fit(run, state, program.jit_step_at(shardings), batches, evaluate)
    run.close()
    samples.close()
    return state


def load_pretrained(state: TrainState, config: BiCodecTrainingConfig) -> dict[str, Any]:
    """Reads the parts that the configuration names, into the shardings of the state.

    Returns:
      What `with_pretrained` takes.

    Raises:
      SparkError: a part cannot be read, or does not fit the state.
    """
    pretrained = {}
    if config.wav2vec2 is not None and "wav2vec2" in state.params:
        wanted = {"params": _shapes(state.params["wav2vec2"])}
        pretrained["wav2vec2"] = read_part(config.wav2vec2, "wav2vec2", wanted)["params"]
    if config.init_from is not None:
        pretrained["bicodec"] = read_part(config.init_from, "bicodec", _shapes(codec_variables(state)))
    return pretrained


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
