"""Train step and evaluation of the recognizer (CTC)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from spark_jax.training.state import Batch, Metrics, TrainState, advance, guarded_update
from spark_jax.wav2vec2 import ctc, pitch
from spark_jax.wav2vec2.model import normalize_input


def ctc_step(
    model: ctc.Wav2Vec2ForCTC, optimizer: optax.GradientTransformation, sample_rate: int, pitch_weight: float = 0.0
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a step on a batch of `data.speech`, with the metrics loss, audio_seconds, grad_norm and skipped.

    The loss is CTC's per label, or with `path` in the batch the cross-entropy per frame. Of a model with a pitch head
    `pitch_weight` times the losses of pitch and voicing are added, metrics of their own beside `labels`, what was the
    whole loss.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        inputs = normalize_input(batch["samples"], batch["lengths"])

        def loss_fn(params: Any) -> tuple[Array, Metrics]:
            result = model.apply({"params": params}, inputs, batch["lengths"], method="recognize")
            if "path" in batch:
                loss = ctc.alignment_loss(result.logits, batch["path"])
            else:
                loss = ctc.ctc_loss(result.logits, result.frames, batch["targets"], batch["target_lengths"])
            if result.pitch is None:
                return loss, {}
            terms = pitch.feature_pitch_losses(result.pitch, batch["f0"], _valid(result))
            return loss + pitch_weight * (terms["f0"] + terms["voicing"]), {"labels": loss, **terms}

        (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        params, opt_state, report = guarded_update(loss, grads, state.opt_state, state.params, optimizer)
        seconds = jnp.sum(batch["lengths"]).astype(jnp.float32) / sample_rate
        metrics = {"loss": loss, **terms, "audio_seconds": seconds, **report}
        return advance(state, params, opt_state, report["skipped"]), metrics

    return step


def ctc_evaluation(model: ctc.Wav2Vec2ForCTC) -> Callable[[TrainState, Batch], dict[str, Any]]:
    """Returns (state, batch) → `loss` (mean over items), `items`, `logits` and `frames` for decoding on the host.

    Of a model with a pitch head also `pitch`: the sums of `wav2vec2.pitch.feature_pitch_sums`.
    """

    def evaluate(state: TrainState, batch: Batch) -> dict[str, Any]:
        inputs = normalize_input(batch["samples"], batch["lengths"])
        result = model.apply({"params": state.params}, inputs, batch["lengths"], method="recognize")
        loss = ctc.ctc_loss(result.logits, result.frames, batch["targets"], batch["target_lengths"])
        items = jnp.sum(batch["target_lengths"] > 0)
        found = {"loss": loss, "items": items, "logits": result.logits, "frames": result.frames}
        if result.pitch is not None:
            found["pitch"] = pitch.feature_pitch_sums(result.pitch, batch["f0"], _valid(result))
        return found

    return evaluate


def _valid(result: ctc.Recognition) -> Bool[Array, "batch frames"]:
    return jnp.arange(result.logits.shape[1]) < result.frames[:, None]
