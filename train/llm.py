"""Trains the speech-token language model on token records: of tools/encode_corpus.py or tools/make_records.py.

    python train/llm.py configs/tiny_llm.yaml --output runs/llm [--set loop.steps=100]

Writes checkpoints, metrics.jsonl, data.json (sequences, and what was dropped), the tokenizer (folder `tokenizer`),
and at every evaluation the part `llm`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from spark_jax import sharding
from spark_jax.config import SparkConfig
from spark_jax.data import pipeline, sources, token_sources
from spark_jax.errors import SparkError
from spark_jax.qwen2.model import Qwen2
from spark_jax.tokenizer import open_tokenizer
from spark_jax.training import checkpoint, entry, loop, step
from spark_jax.training.config import LLMTrainingConfig, load_config
from spark_jax.training.optimizer import make_optimizer
from spark_jax.training.state import TrainState, new_state


def train(config: LLMTrainingConfig, output: Path) -> TrainState:
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    system = load_config(SparkConfig, config.model)
    tokenizer = open_tokenizer(config.tokenizer, system)
    tokenizer.save(output / "tokenizer")
    if tokenizer.vocab_size > system.llm.vocab_size:
        raise SparkError(f"vocab_size of the model is {system.llm.vocab_size}, expected {tokenizer.vocab_size} or more")
    data = config.data
    sequences, validation = (
        token_sources.read_sequences(config.tokens, tokenizer, data, split, training)
        for split, training in ((data.train_split, True), (data.evaluation_split, False))
    )
    place = output / "data.json" if jax.process_index() == 0 else None
    print(sources.report(place, {"train": sequences, "validation": validation}), file=sys.stderr)
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = pipeline.batches(
        sequences.plan(data.batch_rows * config.accumulate, config.loop.seed), sequences.load, config.loop.steps,
        config.loop.seed, threads=data.threads, prefetch=data.prefetch, **share,
    )  # fmt: skip
    validation_batches = pipeline.evaluation_batches(
        validation.plan(data.batch_rows, None), validation.load, data.evaluation_batches, **share
    )

    if config.rowwise_attention and mesh.size > 1:
        raise SparkError(f"rowwise_attention: the mesh has {mesh.size} devices, expected one")
    model = Qwen2(system.llm, jnp.dtype(config.dtype), config.unroll_layers, config.rowwise_attention)
    optimizer = make_optimizer(config.optimizer, config.loop.steps)

    def init() -> TrainState:
        variables = model.init(jax.random.key(config.loop.seed), jnp.zeros((1, 2), jnp.int32))
        return new_state({"params": variables["params"]}, optimizer.init)

    checkpoints = checkpoint.Checkpoints(output / "checkpoints", config.loop.keep_checkpoints)
    state, shardings = loop.initialize_or_restore(mesh, init, checkpoints, batches)
    if checkpoints.latest_step is None and config.init_from is not None:
        wanted = checkpoint.abstract(state.params, shardings.params)
        state = state.replace(params=checkpoint.load_params(config.init_from, wanted))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(f"{parameters / 1e6:.2f} M parameters; mesh {dict(mesh.shape)}", file=sys.stderr)
    evaluate_batch = sharding.jit_eval(step.llm_evaluation(model, config.loss_chunk), mesh, shardings.params)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        checkpoint.save_params(output / "llm", state.params)
        parts = [evaluate_batch(state.params, sharding.put_batch(mesh, batch)) for batch in validation_batches]
        sums = jax.tree.map(lambda *values: sum(values), *jax.device_get(parts))
        return {name: float(value) for name, value in step.completion_metrics(sums).items()}

    state = loop.fit(
        state,
        sharding.jit_step(step.llm_step(model, optimizer, config.accumulate, config.loss_chunk), mesh, shardings),
        batches,
        config=config.loop,
        checkpoints=checkpoints,
        directory=output,
        put=lambda batch: sharding.put_batch(mesh, batch),
        evaluate=evaluate,
        rate="tokens",
    )
    checkpoints.close()
    return state


if __name__ == "__main__":
    entry.run(LLMTrainingConfig, train, __doc__)
