"""Trains the speech-token language model on token records: of `spark-jax prepare encode` or `prepare token-records`.

    spark-jax train llm tiny_llm --output runs/llm [--set loop.steps=100]

The run's folder is a model directory with the part `llm` and its tokenizer, written at every evaluation; with
loop.keep_best so is `best`, of the least validation loss. Beside them: checkpoints, metrics.jsonl, data.json
(sequences, and what was dropped).
"""

from collections.abc import Mapping
from pathlib import Path

import jax

from spark_jax import sharding
from spark_jax.data import pipeline, token_sources
from spark_jax.errors import SparkError
from spark_jax.model_directory.directory import read_part, read_system
from spark_jax.performance.flops import llm_step_flops
from spark_jax.shared import distributed
from spark_jax.text.tokenizer import open_tokenizer
from spark_jax.training import checkpoint, loop
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.llm.program import llm_program
from spark_jax.training.llm.step import completion_metrics
from spark_jax.training.metrics import Window
from spark_jax.training.run import Run, describe_parameters
from spark_jax.training.state import TrainState


def train(config: LLMTrainingConfig, output: Path) -> TrainState:
    """Trains a language model, from the start or on from the newest checkpoint in `output`; returns the last state.

    Raises:
      SparkError: the configuration, the data or what it starts from is at fault, or a file cannot be written.
    """
    system = read_system(config.model)
    program = llm_program(config, system)
    program.check_best_metric(config.loop, completion_metrics)

    tokenizer = open_tokenizer(config.tokenizer, system)
    if tokenizer.vocab_size > system.llm.vocab_size:
        raise SparkError(f"vocab_size of the model is {system.llm.vocab_size}, expected {tokenizer.vocab_size} or more")
    if distributed.is_primary():
        tokenizer.save(output / "tokenizer")
    data = config.data
    global_tokens = system.bicodec.speaker_encoder.token_num
    sequences, validation = (
        token_sources.read_sequences(config.tokens, tokenizer, data, split, training, system.token_rate, global_tokens)
        for split, training in ((data.train_split, True), (data.evaluation_split, False))
    )

    def step_flops(means: Mapping[str, float]) -> float:
        return llm_step_flops(system.llm, means["tokens"], means["targets"], means["attention_pairs"])

    run = Run(output, program, system, config.loop, step_flops)
    run.report_data({"train": sequences, "validation": validation})
    plan = sequences.plan(data.batch_rows * config.accumulate, config.loop.seed)
    batches = run.batches(plan, sequences.load, data)
    validation_batches = pipeline.evaluation_batches(
        validation.plan(data.batch_rows, None), validation.load, data.evaluation_batches
    )

    state, shardings = run.initialize_or_restore(batches)
    if run.is_new and config.init_from is not None:
        wanted = {"params": checkpoint.abstract(state.params, shardings.params)}
        state = state.replace(params=read_part(config.init_from, "llm", wanted)["params"])
    distributed.log(f"{describe_parameters(state.params)} parameters; mesh {dict(run.mesh.shape)}")
    evaluate_batch = program.jit_evaluation(shardings)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        run.write_parts({"llm": {"params": state.params}})
        parts = [evaluate_batch(state, sharding.put_whole_batch(run.mesh, batch)) for batch in validation_batches]
        sums = jax.tree.map(lambda *values: sum(values), *jax.device_get(parts))
        window = Window()  # leaves out what the validation data has no targets of
        window.add(jax.device_get(completion_metrics(sums)))
        return window.take()[0]

    state = loop.fit(run, state, program.jit_step_at(shardings), batches, evaluate)
    run.close()
    return state
