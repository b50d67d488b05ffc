"""Train step and evaluation of the speech-token language model."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from spark_jax.data import tokens
from spark_jax.nn.cross_entropy import chunked_cross_entropy
from spark_jax.qwen2.model import Qwen2
from spark_jax.training.state import Batch, Metrics, TrainState, advance, guarded_update


def llm_step(
    model: Qwen2, optimizer: optax.GradientTransformation, accumulate: int, loss_chunk: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a step on packed rows of `data.tokens`: cross-entropy per target token of the completions.

    Args:
      model: the decoder.
      accumulate: micro-batches that the rows are divided into; losses and counts are summed over them and
        divided once, so that the result is that of the whole batch.
      loss_chunk: tokens of a device whose logits exist at a time.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def loss_fn(params: Any, part: Batch) -> tuple[Array, Metrics]:
            sums = completion_sums(model, params, part, loss_chunk)
            return sums["loss"], sums

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        if accumulate == 1:
            (_, sums), grads = value_and_grad(state.params, batch)
        else:
            # Row r goes to micro-batch r % accumulate: each device keeps its own rows.
            parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), dict(batch))

            def add(total: Any, part: Batch) -> tuple[Any, None]:
                (_, sums), grads = value_and_grad(state.params, part)
                return jax.tree.map(jnp.add, total, (sums, grads)), None

            (_, shapes), _ = jax.eval_shape(value_and_grad, state.params, jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (shapes, state.params))
            (sums, grads), _ = jax.lax.scan(add, zeros, parts)
        count = jnp.maximum(sums["targets"], 1.0)
        grads = jax.tree.map(lambda grad: grad / count, grads)
        params, opt_state, report = guarded_update(sums["loss"], grads, state.opt_state, state.params, optimizer)
        metrics = {**completion_metrics(sums), **report}
        return advance(state, params, opt_state, report["skipped"]), metrics

    return step


def llm_evaluation(model: Qwen2, loss_chunk: int) -> Callable[[TrainState, Batch], Metrics]:
    """Returns (state, batch) → `completion_sums`, to be added up over all batches for `completion_metrics`."""

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return completion_sums(model, state.params, batch, loss_chunk)

    return evaluate


def completion_sums(model: Qwen2, params: Any, batch: Batch, loss_chunk: int) -> Metrics:
    """Computes sums over a batch's target tokens, in float32.

    Returns:
      `loss` and `targets` (their count), `loss_<name>`, `targets_<name>` for each class of target and, where the
      batch has `tasks`, for each task,
      `correct_semantic` (no token is more likely than the target), `top10_correct_semantic` (fewer than ten are),
      `tokens` (not padding), `attention_pairs` (of each of these with itself and those before it in its sequence).
    """
    hidden, _ = model.apply({"params": params}, batch["input_ids"], batch["positions"], batch["segment_ids"])
    classes = batch["classes"]
    is_target, is_token = classes != tokens.NONE, batch["segment_ids"] != 0
    table = model.apply({"params": params}, method="output_table")
    loss, scores = chunked_cross_entropy(hidden, table, batch["targets"], is_target.astype(jnp.float32), loss_chunk)
    scores = jax.lax.stop_gradient(scores)
    semantic = classes == tokens.SEMANTIC
    sums = {
        "loss": loss,
        "targets": jnp.sum(is_target, dtype=jnp.float32),
        "tokens": jnp.sum(is_token, dtype=jnp.float32),
        "attention_pairs": jnp.sum(batch["positions"] + 1, where=is_token, dtype=jnp.float32),
        "correct_semantic": jnp.sum(scores.ranks == 0, where=semantic, dtype=jnp.float32),
        "top10_correct_semantic": jnp.sum(scores.ranks < 10, where=semantic, dtype=jnp.float32),
    }
    groups = [(tokens.CLASS_NAMES[i], classes == i) for i in (tokens.CONTROL, tokens.GLOBAL, tokens.SEMANTIC)]
    if "tasks" in batch:
        groups += [(name, is_target & (batch["tasks"] == i)) for i, name in enumerate(tokens.TASK_NAMES) if i]
    for name, chosen in groups:
        sums[f"loss_{name}"] = jnp.sum(scores.losses, where=chosen)
        sums[f"targets_{name}"] = jnp.sum(chosen, dtype=jnp.float32)
    return sums


def completion_metrics(sums: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    """Returns means per target token of `completion_sums`: loss, loss by class and task, top-1 and top-10 accuracy on
    semantic tokens; beside them the counts of targets, tokens and attention pairs."""
    mean = lambda name, of: sums[name] / jnp.maximum(sums[of], 1.0)  # noqa: E731
    counts = {name: value for name, value in sums.items() if name.startswith("targets")}
    losses = [(name.replace("targets", "loss"), name) for name in counts]
    return {
        **{loss: mean(loss, count) for loss, count in losses},
        "accuracy_semantic": mean("correct_semantic", "targets_semantic"),
        "accuracy_top10_semantic": mean("top10_correct_semantic", "targets_semantic"),
        "tokens": sums["tokens"],
        "attention_pairs": sums["attention_pairs"],
        **counts,
    }
