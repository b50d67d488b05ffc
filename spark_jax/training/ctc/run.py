"""Trains a wav2vec2 with a CTC head on the transcripts of a corpus; its tapped layers become the extractor.

    spark-jax train ctc configs/tiny_wav2vec2.yaml --output runs/wav2vec2 [--set loop.steps=100]

Writes checkpoints, metrics.jsonl, vocabulary.json, and at every evaluation two parts: `ctc` (the whole
recognizer) and `wav2vec2` (the first max(feature_layers) layers, which the codec's training starts from).
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spark_jax import sharding
from spark_jax.config import SparkConfig, Wav2Vec2Config
from spark_jax.data import manifest, pipeline, speech
from spark_jax.shared import distributed
from spark_jax.shared.config_files import load_config
from spark_jax.training import checkpoint, entry, loop, step
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.metrics import edit_distance
from spark_jax.training.optimizer import make_optimizer, make_schedule
from spark_jax.training.state import TrainState, new_state
from spark_jax.wav2vec2.ctc import Wav2Vec2ForCTC, greedy_decode
from spark_jax.wav2vec2.fourier import fourier_kernel
from spark_jax.wav2vec2.model import num_frames


def train(config: CTCTrainingConfig, output: Path) -> TrainState:
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    system = load_config(SparkConfig, config.model)
    data = config.data
    fields = [config.target] + ["phoneme_bounds"] * config.aligned
    train_records = manifest.read_corpus(config.corpus, data.train_split, fields)
    validation_records = manifest.read_corpus(config.corpus, data.evaluation_split, fields)
    vocabulary = speech.Vocabulary.of([record[config.target] for record in train_records])
    if distributed.is_primary():
        vocabulary.save(output / "vocabulary.json")
    examples, validation = (
        speech.SpeechExamples(
            records,
            config.target,
            vocabulary,
            data.bucket_seconds,
            data.batch_seconds,
            system.sample_rate,
            row_multiple=mesh.shape[sharding.DATA] * mesh.shape[sharding.FSDP],
            frames=(lambda samples: num_frames(samples, system.wav2vec2)) if config.aligned else None,
        )
        for records in (train_records, validation_records)
    )
    distributed.log(
        f"{len(train_records)} utterances, {examples.dropped} dropped; {len(vocabulary)} labels; "
        f"buckets {data.bucket_seconds} s × {examples.batch_sizes}; mesh {dict(mesh.shape)}"
    )
    share, shares = sharding.batch_share(mesh)
    batches = pipeline.batches(
        examples.plan(config.loop.seed),
        examples.load,
        config.loop.steps,
        config.loop.seed,
        threads=data.threads,
        prefetch=data.prefetch,
        process_index=share,
        process_count=shares,
    )
    validation_batches = pipeline.evaluation_batches(validation.plan(None), validation.load, data.evaluation_batches)

    model = Wav2Vec2ForCTC(system.wav2vec2, len(vocabulary))
    optimizer = make_optimizer(config.optimizer, config.loop.steps)

    def init() -> TrainState:
        variables = model.init(jax.random.key(config.loop.seed), jnp.zeros((1, system.sample_rate)))
        params = variables["params"]
        if config.fourier_front_end:
            convolution = params["wav2vec2"]["feature_extractor"]["conv_0"]
            length, _, channels = convolution["kernel"].unbox().shape
            bank = fourier_kernel(length, channels, system.sample_rate)
            convolution["kernel"] = convolution["kernel"].replace_boxed(jnp.asarray(bank))
        return new_state({"params": params}, optimizer.init)

    checkpoints = checkpoint.Checkpoints.of_run(output, config.loop)
    state, shardings = loop.initialize_or_restore(mesh, init, checkpoints, batches)
    options = sharding.compiler_options(mesh, config.mesh.cpu_block_mb)
    evaluate_batch = sharding.jit_eval(step.ctc_evaluation(model), mesh, shardings.params, options)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        checkpoint.save_params(output / "ctc", state.params)
        checkpoint.save_params(output / "wav2vec2", extractor_params(state.params, system.wav2vec2))
        losses, items, errors, labels = 0.0, 0, 0, 0
        for batch in validation_batches:
            result = jax.device_get(evaluate_batch(state.params, sharding.put_whole_batch(mesh, batch)))
            losses += float(result["loss"]) * int(result["items"])
            items += int(result["items"])
            decoded = greedy_decode(result["logits"], result["frames"])
            for ids, target, length in zip(decoded, batch["targets"], batch["target_lengths"], strict=True):
                errors += edit_distance(np.asarray(ids), target[:length])
                labels += int(length)
        return {"loss": losses / items, "label_error_rate": errors / labels, "items": items}

    state = loop.fit(
        state,
        sharding.jit_step(step.ctc_step(model, optimizer, system.sample_rate), mesh, shardings, options),
        batches,
        config=config.loop,
        checkpoints=checkpoints,
        directory=output,
        put=lambda batch: sharding.put_batch(mesh, batch),
        evaluate=evaluate,
        rate="audio_seconds",
        schedules={"learning_rate": make_schedule(config.optimizer, config.loop.steps)},
        parts=("ctc", "wav2vec2"),
    )
    checkpoints.close()
    return state


def extractor_params(params: dict, config: Wav2Vec2Config) -> dict:
    """The parameters of `Wav2Vec2(config)`: the recognizer's, without the layers above the last tap."""
    extractor = dict(params["wav2vec2"])
    extractor["layers"] = jax.tree.map(lambda leaf: leaf[: max(config.feature_layers)], extractor["layers"])
    return extractor


if __name__ == "__main__":
    entry.run(CTCTrainingConfig, train, __doc__)
