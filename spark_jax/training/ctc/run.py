"""Trains a wav2vec2 with a CTC head on the transcripts of a corpus; its tapped layers become the extractor.

    spark-jax train ctc tiny_wav2vec2 --output runs/wav2vec2 [--set loop.steps=100]

The run's folder is a model directory with two parts, written at every evaluation: `recognizer`, all of it, with its
vocabulary.json, and `wav2vec2`, the first max(feature_layers) layers, which the codec's training starts from. Beside
them: checkpoints and metrics.jsonl.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from spark_jax import sharding
from spark_jax.config import Wav2Vec2Config
from spark_jax.data import manifest, pipeline, speech
from spark_jax.data.pitch_tracks import PitchTracks
from spark_jax.model_directory.directory import read_system
from spark_jax.shared import distributed
from spark_jax.text.vocabulary import VOCABULARY, Vocabulary
from spark_jax.training import loop
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.ctc.program import ctc_program
from spark_jax.training.metrics import edit_distance
from spark_jax.training.program import make_mesh, row_multiple
from spark_jax.training.run import Run
from spark_jax.training.state import TrainState
from spark_jax.wav2vec2.ctc import greedy_decode

METRICS = ("loss", "label_error_rate", "items")
PITCH_METRICS = ("voicing_accuracy", "f0_r2")  # shares of frames, and of the variance of relative pitch


def train(config: CTCTrainingConfig, output: Path) -> TrainState:
    """Trains a recognizer, from the start or on from the newest checkpoint in `output`; returns the last state.

    Raises:
      SparkError: the configuration or the data is at fault, or a file cannot be written.
    """
    system = read_system(config.model)
    mesh = make_mesh(config.mesh, None)

    tracks = PitchTracks(config.corpus) if config.pitch_weight > 0 else None
    data, fields = config.data, [config.target] + ["phoneme_bounds"] * config.aligned
    train_records, validation_records = (
        manifest.read_corpus(config.corpus, split, fields) for split in (data.train_split, data.evaluation_split)
    )
    vocabulary = Vocabulary.of(speech.transcripts(train_records, config.target))
    if distributed.is_primary():
        vocabulary.save(output / VOCABULARY)
    examples, validation = (
        speech.SpeechExamples(
            records, config.target, vocabulary, data, system, row_multiple(mesh), config.aligned, tracks
        )
        for records in (train_records, validation_records)
    )
    distributed.log(
        f"{len(train_records)} utterances, {examples.dropped} dropped; {len(vocabulary)} labels; "
        f"buckets {data.bucket_seconds} s × {examples.batch_sizes}; mesh {dict(mesh.shape)}"
    )

    # Only now is it known how many labels there are.
    program = ctc_program(config, system, None, len(vocabulary), examples.target_lengths[-1])
    names = METRICS + PITCH_METRICS * (tracks is not None)
    program.check_best_metric(config.loop, lambda values: dict.fromkeys(names, values["loss"]))
    run = Run(output, program, system, config.loop)
    batches = run.batches(examples.plan(config.loop.seed), examples.load, data)
    validation_batches = pipeline.evaluation_batches(validation.plan(None), validation.load, data.evaluation_batches)

    state, shardings = run.initialize_or_restore(batches)
    evaluate_batch = program.jit_evaluation(shardings)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        extractor = extractor_params(state.params, system.wav2vec2)
        recognizer = {name: part for name, part in state.params.items() if name != "pitch_head"}
        run.write_parts({"recognizer": {"params": recognizer}, "wav2vec2": {"params": extractor}})
        losses, items, errors, labels = 0.0, 0, 0, 0
        pitch: Counter[str] = Counter()
        for batch in validation_batches:
            result = jax.device_get(evaluate_batch(state, sharding.put_whole_batch(run.mesh, batch)))
            losses += float(result["loss"]) * int(result["items"])
            items += int(result["items"])
            pitch.update({name: float(value) for name, value in result.get("pitch", {}).items()})
            decoded = greedy_decode(result["logits"], result["frames"])
            for ids, target, length in zip(decoded, batch["targets"], batch["target_lengths"], strict=True):
                errors += edit_distance(np.asarray(ids, np.int32), target[:length])
                labels += int(length)
        values = (losses / items, errors / labels, items)
        if pitch:
            correct = pitch["voicing_correct"] / pitch["valid"]
            values += (correct, 1 - pitch["squared_error"] / max(pitch["squares"], 1e-9))
        return dict(zip(names, values, strict=True))

    state = loop.fit(run, state, program.jit_step_at(shardings), batches, evaluate)
    run.close()
    return state


def extractor_params(params: dict, config: Wav2Vec2Config) -> dict:
    """Returns the parameters of `Wav2Vec2(config)`: the recognizer's, without the layers above the last tap."""
    extractor = dict(params["wav2vec2"])
    extractor["layers"] = jax.tree.map(lambda leaf: leaf[: max(config.feature_layers)], extractor["layers"])
    return extractor
