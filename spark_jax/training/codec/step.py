"""The codec's train step: frozen wav2vec2 features, discriminators first, then the generator (paper §3.1.4).

Frozen parameters are simply not differentiated, so that the backward pass ends where the trained parts end. What
changes at some step of the run is decided by `state.step`: the speaker's vector and the dead-code reset inside of this
step, the discriminators' start by `Program.jit_step_at`, as a step with them is another program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spark_jax.bicodec import losses
from spark_jax.bicodec.model import BiCodecOutput
from spark_jax.config import SparkConfig
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.dead_codes import reset_dead_codes, reset_is_due
from spark_jax.training.codec.features import batch_features
from spark_jax.training.codec.models import CodecModels
from spark_jax.training.codec.reconstruction import pitch_target, reconstruction_losses, train_from_tokens
from spark_jax.training.state import Batch, Metrics, TrainState, advance, guarded_update


def codec_step(
    models: CodecModels, config: BiCodecTrainingConfig, system: SparkConfig, adversarial: bool
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns a step on a batch of `data.codec`.

    Args:
      adversarial: whether discriminators take part.
    """
    weights = config.losses
    trains_speaker = "speaker_encoder" not in config.frozen_parts

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        params, real = state.params, batch["wave"]
        features, mask = batch_features(models, config, system, params, batch)
        on_x_vector = state.step < config.d_vector_train_start
        pitch = pitch_target(batch)
        noise_key = jax.random.fold_in(jax.random.key(config.loop.seed), state.step)

        def forward(generator: Any) -> tuple[BiCodecOutput, Any]:
            variables = {"params": {**generator, **params["frozen"]}, **state.collections}
            if features is None:
                return train_from_tokens(models.codec, variables, batch, trains_speaker, noise_key)
            outputs, collections = models.codec.apply(
                variables,
                features,
                batch["reference"],
                train=True,
                condition_on_x_vector=on_x_vector,
                wave=config.phase == "full",
                frozen=config.frozen_parts,
                mask=mask,
                pitch=pitch,
                noise_key=noise_key,
                mutable=list(state.collections),
            )
            return outputs.replace(semantic_ids=None, global_ids=None), collections  # integers have no gradient

        # One forward pass serves both players: the discriminators see its output, then its pullback is used.
        outputs, pullback, collections = jax.vjp(forward, params["generator"], has_aux=True)
        metrics: Metrics = {}
        if features is not None:
            metrics = {"perplexity": outputs.perplexity, "active_codes": outputs.active_num}
        new_params, new_opt_state = dict(params), dict(state.opt_state)
        skipped = jnp.zeros(())

        if adversarial:
            discriminate = lambda p, wave: models.discriminators.apply({"params": p}, wave)  # noqa: E731

            def discriminator_loss(p: Any) -> Array:
                return losses.discriminator_loss(discriminate(p, outputs.recons), discriminate(p, real))

            loss, grads = jax.value_and_grad(discriminator_loss)(params["discriminator"])
            new_params["discriminator"], new_opt_state["discriminator"], report = guarded_update(
                loss, grads, state.opt_state["discriminator"], params["discriminator"], models.discriminator_optimizer
            )
            metrics |= {"discriminator": loss, "discriminator_grad_norm": report["grad_norm"]}
            skipped = report["skipped"]

        def generator_loss(outputs: BiCodecOutput) -> tuple[Array, Metrics]:
            terms = reconstruction_losses(outputs, features, real, system.sample_rate, mask, pitch)
            factors = {name: getattr(weights, name) for name in terms}
            if features is not None:
                x_vector = jax.lax.stop_gradient(outputs.x_vector)
                terms["speaker"] = jnp.mean(jnp.square(outputs.d_vector - x_vector))
                factors["speaker"] = jnp.where(on_x_vector, 0.0, weights.speaker)
            if adversarial:
                fake_maps = discriminate(new_params["discriminator"], outputs.recons)
                real_maps = jax.lax.stop_gradient(discriminate(new_params["discriminator"], real))
                terms["adversarial"] = losses.adversarial_loss(fake_maps)
                terms["feature_matching"] = losses.feature_matching_loss(fake_maps, real_maps)
                factors |= {"adversarial": weights.adversarial, "feature_matching": weights.feature_matching}
            return sum(factors[name] * term for name, term in terms.items()), terms

        (loss, terms), cotangents = jax.value_and_grad(generator_loss, has_aux=True)(outputs)
        (grads,) = pullback(cotangents)
        new_params["generator"], new_opt_state["generator"], report = guarded_update(
            loss, grads, state.opt_state["generator"], params["generator"], models.generator_optimizer
        )
        # Statistics of a skipped step may be as broken as its gradient.
        keep_old = report["skipped"] > 0
        collections = jax.tree.map(lambda old, new: jnp.where(keep_old, old, new), state.collections, collections)
        if config.dead_code_reset.every:
            due = ~keep_old & reset_is_due(config.dead_code_reset, state)
            reset = partial(reset_dead_codes, models.codec, config, state, features, mask)
            new_params, collections = jax.lax.cond(due, reset, lambda *trees: trees, new_params, collections)
        skipped = jnp.maximum(skipped, report["skipped"])
        seconds = jnp.asarray(real.size / system.sample_rate, jnp.float32)
        metrics |= {"loss": loss, **terms, "grad_norm": report["grad_norm"], "skipped": skipped}
        metrics["audio_seconds"] = seconds
        return advance(state, new_params, new_opt_state, skipped, collections), metrics

    return step
