"""Trains the speech-token language model on token records: of `spark-jax prepare encode` or `spark-jax prepare`.

    spark-jax train llm configs/tiny_llm.yaml --output runs/llm [--set loop.steps=100]

Writes checkpoints, metrics.jsonl, data.json (sequences, and what was dropped), the tokenizer (folder `tokenizer`),
and at every evaluation the part `llm` (with loop.keep_best also `best/llm`, that of the least validation loss).
"""

from collections.abc import Mapping
from pathlib import Path

import jax

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.data import pipeline, sources, token_sources
from spark_jax.errors import SparkError
from spark_jax.performance.flops import llm_step_flops
from spark_jax.performance.hardware import peak_flops
from spark_jax.shared import distributed
from spark_jax.shared.config_files import load_config
from spark_jax.text.tokenizer import open_tokenizer
from spark_jax.training import checkpoint, entry, loop, step
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.metrics import Window
from spark_jax.training.optimizer import make_schedule
from spark_jax.training.program import llm_program
from spark_jax.training.state import TrainState


def train(config: LLMTrainingConfig, output: Path) -> TrainState:
    system = load_config(SparkConfig, config.model)
    program = llm_program(config, system)
    program.check_best_metric(config.loop, step.completion_metrics)
    mesh = program.mesh
    tokenizer = open_tokenizer(config.tokenizer, system)
    if distributed.is_primary():
        tokenizer.save(output / "tokenizer")
    if tokenizer.vocab_size > system.llm.vocab_size:
        raise SparkError(f"vocab_size of the model is {system.llm.vocab_size}, expected {tokenizer.vocab_size} or more")
    data = config.data
    sequences, validation = (
        token_sources.read_sequences(config.tokens, tokenizer, data, split, training)
        for split, training in ((data.train_split, True), (data.evaluation_split, False))
    )
    place = output / "data.json" if distributed.is_primary() else None
    report = sources.DataReport(place, {"train": sequences, "validation": validation})
    distributed.log(report.line())
    share, shares = sharding.batch_share(mesh)
    batches = pipeline.batches(
        sequences.plan(data.batch_rows * config.accumulate, config.loop.seed),
        sequences.load,
        config.loop.steps,
        config.loop.seed,
        threads=data.threads,
        prefetch=data.prefetch,
        process_index=share,
        process_count=shares,
    )
    validation_batches = pipeline.evaluation_batches(
        validation.plan(data.batch_rows, None), validation.load, data.evaluation_batches
    )

    checkpoints = checkpoint.Checkpoints.of_run(output, config.loop)
    state, shardings = loop.initialize_or_restore(mesh, program.init, checkpoints, batches)
    if checkpoints.latest_step is None and config.init_from is not None:
        wanted = checkpoint.abstract(state.params, shardings.params)
        state = state.replace(params=checkpoint.load_params(config.init_from, wanted))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    distributed.log(f"{parameters / 1e6:.2f} M parameters; mesh {dict(mesh.shape)}")
    evaluate_batch = program.jit_evaluation(shardings)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        checkpoint.save_params(output / "llm", state.params)
        parts = [evaluate_batch(state, sharding.put_whole_batch(mesh, batch)) for batch in validation_batches]
        sums = jax.tree.map(lambda *values: sum(values), *jax.device_get(parts))
        window = Window()  # leaves out what the validation data has no targets of
        window.add(jax.device_get(step.completion_metrics(sums)))
        return window.take()[0]

    state = loop.fit(
        state,
        program.jit_step(shardings),
        batches,
        config=config.loop,
        checkpoints=checkpoints,
        directory=output,
        put=lambda batch: sharding.put_batch(mesh, batch),
        evaluate=evaluate,
        rate=program.rate,
        schedules={"learning_rate": make_schedule(config.optimizer, config.loop.steps)},
        counts=report.update,
        parts=("llm", "tokenizer"),
        flops_per_step=lambda means: llm_step_flops(
            system.llm, means["tokens"], means["targets"], means["attention_pairs"]
        ),
        peak_flops=peak_flops(mesh.devices.flat[0]),
    )
    checkpoints.close()
    return state


if __name__ == "__main__":
    entry.run(LLMTrainingConfig, train, __doc__)
