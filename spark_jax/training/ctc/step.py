"""Train step and evaluation of the recognizer (CTC)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from spark_jax.training.state import Batch, Metrics, TrainState, advance, guarded_update
from spark_jax.wav2vec2 import ctc
from spark_jax.wav2vec2.model import normalize_input


def ctc_step(
    model: ctc.Wav2Vec2ForCTC, optimizer: optax.GradientTransformation, sample_rate: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a step on a batch of `data.speech`, with the metrics loss, audio_seconds, grad_norm and skipped.

    The loss is CTC's per label, or with `path` in the batch the cross-entropy per frame.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        inputs = normalize_input(batch["samples"], batch["lengths"])

        def loss_fn(params: Any) -> Array:
            logits, frames = model.apply({"params": params}, inputs, batch["lengths"])
            if "path" in batch:
                return ctc.alignment_loss(logits, batch["path"])
            return ctc.ctc_loss(logits, frames, batch["targets"], batch["target_lengths"])

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        params, opt_state, report = guarded_update(loss, grads, state.opt_state, state.params, optimizer)
        seconds = jnp.sum(batch["lengths"]).astype(jnp.float32) / sample_rate
        metrics = {"loss": loss, "audio_seconds": seconds, **report}
        return advance(state, params, opt_state, report["skipped"]), metrics

    return step


def ctc_evaluation(model: ctc.Wav2Vec2ForCTC) -> Callable[[TrainState, Batch], Metrics]:
    """Returns (state, batch) → `loss` (mean over items), `items`, `logits` and `frames` for decoding on the host."""

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        inputs = normalize_input(batch["samples"], batch["lengths"])
        logits, frames = model.apply({"params": state.params}, inputs, batch["lengths"])
        loss = ctc.ctc_loss(logits, frames, batch["targets"], batch["target_lengths"])
        items = jnp.sum(batch["target_lengths"] > 0)
        return {"loss": loss, "items": items, "logits": logits, "frames": frames}

    return evaluate
