"""Step time of the language model's training against the same step in PyTorch; prints a Markdown table.

    pip install -e ".[parity]"
    python tools/benchmark_training.py configs/tiny_llm.yaml [--steps 10] [--rounds 5] [--set attention=xla]

Both sides start from the same weights and train on the same packed rows of random tokens; the losses of the first
steps are compared before anything is timed. PyTorch: transformers' own class with scaled_dot_product_attention under a
mask of segments, cross-entropy of the target positions only, AdamW (fused), clipping. Rounds of the two alternate, so
that what else the machine does meets both; the ratio is that of the medians.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

from spark_jax import sharding
from spark_jax.config import SparkConfig, to_mapping
from spark_jax.convert import weights
from spark_jax.convert.engine import Export
from spark_jax.data import tokens
from spark_jax.errors import SparkError
from spark_jax.extra import needs_extra
from spark_jax.pytree import flatten
from spark_jax.training.config import LLMTrainingConfig, load_config
from spark_jax.training.optimizer import make_schedule
from spark_jax.training.program import llm_program

Batch = dict[str, np.ndarray]


def main(
    config: Annotated[Path, typer.Argument(help="YAML of an LLM training.")],
    steps: Annotated[int, typer.Option(help="Steps of a round.")] = 10,
    rounds: Annotated[int, typer.Option(help="Rounds of each side.")] = 5,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value")] = None,
) -> None:
    """Times one training step here and in PyTorch."""
    try:
        run = load_config(LLMTrainingConfig, config, overrides or [])
        compare(run, load_config(SparkConfig, run.model), steps, rounds)
    except SparkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def compare(run: LLMTrainingConfig, system: SparkConfig, steps: int, rounds: int) -> None:
    if run.dtype != "float32":
        raise SparkError(f"dtype is {run.dtype}, expected float32")
    program = llm_program(run, system)
    rng = np.random.default_rng(0)
    batches = [packed_rows(run, system.llm.vocab_size, rng) for _ in range(4)]
    state, shardings = sharding.initialize(program.mesh, program.init)
    theirs = torch_step(run, system, state.params)
    jitted = program.jit_step(shardings)

    def ours(batch: Batch) -> float:
        nonlocal state
        state, metrics = jitted(state, sharding.put_batch(program.mesh, batch))
        return float(metrics["loss"])

    for batch in batches:  # compiles; and both do the same
        pair = ours(batch), theirs(batch)
        if abs(pair[0] - pair[1]) > 1e-4 * abs(pair[1]):
            raise SparkError(f"the losses differ, ours {pair[0]:.6f}, PyTorch's {pair[1]:.6f}: nothing to compare")
    times: dict[str, list[float]] = {"spark_jax": [], "PyTorch": []}
    for _ in range(rounds):
        for name, step in (("spark_jax", ours), ("PyTorch", theirs)):
            start = time.perf_counter()
            for i in range(steps):
                step(batches[i % len(batches)])
            times[name].append((time.perf_counter() - start) / steps)
    middle = {name: statistics.median(values) for name, values in times.items()}
    print("| step of | median s | fastest s | slowest s |\n|---|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {middle[name]:.3f} | {min(values):.3f} | {max(values):.3f} |")
    ratio = middle["PyTorch"] / middle["spark_jax"]
    print(f"\nPyTorch's time over ours: {ratio:.2f} ({rounds} rounds of {steps} steps)")


def packed_rows(run: LLMTrainingConfig, vocabulary: int, rng: np.random.Generator) -> Batch:
    """A batch like those of data.tokens: rows full of sequences of 60 to 200 tokens, the last two thirds targets."""
    shape = (run.data.batch_rows * run.accumulate, run.data.row_length)
    batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "targets", "positions", "segment_ids")}
    batch["classes"] = np.zeros(shape, np.int8)
    for row in range(shape[0]):
        start, segment = 0, 0
        while shape[1] - start >= 60:
            length, segment = min(int(rng.integers(60, 200)), shape[1] - start), segment + 1
            ids, end = rng.integers(0, vocabulary, length), start + length
            batch["input_ids"][row, start:end] = ids
            batch["targets"][row, start : end - 1] = ids[1:]
            batch["classes"][row, start + length // 3 : end - 1] = tokens.SEMANTIC
            batch["positions"][row, start:end] = np.arange(length)
            batch["segment_ids"][row, start:end] = segment
            start = end
    return batch


def torch_step(run: LLMTrainingConfig, system: SparkConfig, params: object) -> Callable[[Batch], float]:
    """The same step in PyTorch, from the same weights.

    Raises:
      SparkError: PyTorch or transformers is missing.
    """
    with needs_extra("parity"):
        import torch
        import transformers
    llm, optimizer_config = system.llm, run.optimizer
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size"
    names += " max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta head_dim"
    cls = transformers.Qwen3Config if llm.qk_norm else transformers.Qwen2Config
    sizes = {name: value for name, value in to_mapping(llm).items() if name in names.split()}
    model = transformers.AutoModelForCausalLM.from_config(
        cls(**sizes), dtype=torch.float32, attn_implementation="sdpa"
    )
    job = Export(weights.table("llm", system), {"params": jax.eval_shape(lambda: params)}, np.dtype(np.float32))
    leaves = flatten({"params": jax.device_get(params)}).items()
    missing, unexpected = model.load_state_dict(
        {name: torch.tensor(tensor) for name, tensor in job.tensors(leaves)}, strict=False
    )
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SparkError(f"transformers' model: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    decay = optimizer_config.weight_decay
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=1.0, betas=optimizer_config.betas, eps=optimizer_config.eps, fused=True,
    )  # fmt: skip
    schedule = make_schedule(optimizer_config, run.loop.steps)
    rates: Sequence[float] = [float(schedule(i)) for i in range(64)]
    updates = 0

    def step(batch: Batch) -> float:
        nonlocal updates
        part = {name: torch.from_numpy(value) for name, value in batch.items()}
        segments = part["segment_ids"]
        mask = (segments[:, :, None] == segments[:, None, :]).tril(0)[:, None]
        hidden = model.model(
            input_ids=part["input_ids"].long(), position_ids=part["positions"].long(), attention_mask=mask,
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        asked = part["classes"] != tokens.NONE
        logits = model.lm_head(hidden[asked])
        loss = torch.nn.functional.cross_entropy(logits, part["targets"][asked].long())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if optimizer_config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer_config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rates[min(updates, len(rates) - 1)]
        optimizer.step()
        updates += 1
        return float(loss.detach())

    return step


if __name__ == "__main__":
    typer.run(main)
