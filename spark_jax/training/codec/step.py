"""The codec's train step: frozen wav2vec2 features, discriminators first, then the generator (paper §3.1.4).

The state's trees: `params` is {"generator": trained parts, "frozen": the other parts, "wav2vec2": …,
"discriminator": …}, `opt_state` {"generator": …, "discriminator": …}; collections are those of the codec.
Frozen parameters are simply not differentiated, so that the backward pass ends where the trained parts end.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from spark_jax.bicodec import losses
from spark_jax.bicodec.discriminator import Discriminators
from spark_jax.bicodec.model import BiCodec, BiCodecOutput
from spark_jax.config import SparkConfig
from spark_jax.nn.mask import Mask, downsample_mask
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.state import TrainState, advance, guarded_update
from spark_jax.wav2vec2.model import Wav2Vec2, num_frames

Batch = Mapping[str, Array]
Metrics = dict[str, Array]

NUM_AUDIO_SAMPLES = 4  # rows of a validation batch that are kept as sounds


class CodecModels(struct.PyTreeNode):
    """The modules (no parameters) and optimizers of a run; all static."""

    codec: BiCodec = struct.field(pytree_node=False)
    extractor: Wav2Vec2 | None = struct.field(pytree_node=False)
    discriminators: Discriminators | None = struct.field(pytree_node=False)
    generator_optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    discriminator_optimizer: optax.GradientTransformation = struct.field(pytree_node=False)


def init_state(models: CodecModels, config: BiCodecTrainingConfig, system: SparkConfig) -> TrainState:
    """A fresh boxed state, for `sharding.initialize`; `with_pretrained` puts given parameters into it."""
    keys = jax.random.split(jax.random.key(config.loop.seed), 3)
    samples = jnp.zeros((1, system.sample_rate))
    features = jnp.zeros((1, 8, system.wav2vec2.hidden_size))
    reference = jnp.zeros((1, system.ref_segment_samples))
    variables = dict(models.codec.init(keys[0], features, reference, train=False))
    params = dict(variables.pop("params"))
    frozen = {name: params.pop(name) for name in config.frozen_parts}
    params = {"generator": params, "frozen": frozen}
    if models.extractor is not None:
        params["wav2vec2"] = models.extractor.init(keys[1], samples)["params"]
    opt_state = {"generator": models.generator_optimizer.init(params["generator"])}
    if models.discriminators is not None:
        params["discriminator"] = models.discriminators.init(keys[2], samples)["params"]
        opt_state["discriminator"] = models.discriminator_optimizer.init(params["discriminator"])
    zero = jnp.zeros((), jnp.int32)
    return TrainState(step=zero, params=params, opt_state=opt_state, collections=variables, skipped=zero)


def with_pretrained(state: TrainState, shardings: TrainState, pretrained: Mapping[str, Any]) -> TrainState:
    """The state with given values in place of fresh ones.

    Args:
      pretrained: under "wav2vec2" the extractor's parameters, under "codec" what `codec_variables` gives;
        each may be absent.
    """
    params, collections = dict(state.params), state.collections
    if "wav2vec2" in pretrained:
        params["wav2vec2"] = pretrained["wav2vec2"]
    if "codec" in pretrained:
        collections = dict(pretrained["codec"])
        parts = collections.pop("params")
        params |= {group: {name: parts[name] for name in params[group]} for group in ("generator", "frozen")}
    return jax.device_put(state.replace(params=params, collections=collections), shardings)


def codec_variables(state: TrainState) -> dict[str, Any]:
    """The codec's variables (parameters, statistics) out of a train state: what other programs load."""
    return {"params": {**state.params["generator"], **state.params["frozen"]}, **state.collections}


def extract_features(
    extractor: Wav2Vec2, params: Any, windows: Float[Array, "batch samples"], context: int, tokens: int
) -> Float[Array, "batch tokens features"]:
    """Features of the middle of normalized windows: frame i begins at sample 320·i, as token i does.

    Args:
      windows: segments with context on both sides, normalized.
      context: frames to drop on the left; the right side's are what is left over.
      tokens: frames of the segment.
    """
    features = extractor.apply({"params": params}, windows)
    return jax.lax.stop_gradient(features[:, context : context + tokens])


def utterance_features(
    extractor: Wav2Vec2, params: Any, samples: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> tuple[Float[Array, "batch frames features"], Bool[Array, "batch frames"]]:
    """Features of normalized whole utterances as inference has them, and the frames that are no padding."""
    features = extractor.apply({"params": params}, samples, lengths)
    mask = jnp.arange(features.shape[1]) < num_frames(lengths, extractor.config)[:, None]
    return jax.lax.stop_gradient(features), mask


def codec_step(
    models: CodecModels, config: BiCodecTrainingConfig, system: SparkConfig, adversarial: bool
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A step on a batch of `data.codec`: with `adversarial`, discriminators take part."""
    weights = config.losses

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        params, real = state.params, batch["wave"]
        features, mask = _batch_features(models, config, system, params, batch)
        on_x_vector = state.step < config.d_vector_train_start

        def forward(generator: Any) -> tuple[BiCodecOutput, Any]:
            variables = {"params": {**generator, **params["frozen"]}, **state.collections}
            if features is None:
                return _from_tokens(models.codec, variables, batch), state.collections
            outputs, collections = models.codec.apply(
                variables,
                features,
                batch["reference"],
                train=True,
                condition_on_x_vector=on_x_vector,
                wave=config.phase == "full",
                frozen=config.frozen_parts,
                mask=mask,
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
            terms = reconstruction_losses(outputs, features, real, mask)
            factors = {"vq": weights.vq, "features": weights.features, "codes": weights.codes, "mel": weights.mel}
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
        keep = report["skipped"] > 0
        collections = jax.tree.map(lambda old, new: jnp.where(keep, old, new), state.collections, collections)
        if config.dead_code_reset.every:
            due = (
                ~keep
                & ((state.step + 1) % config.dead_code_reset.every == 0)
                & (state.step < config.dead_code_reset.until)
            )
            reset = partial(_reset_dead_codes, models, config, state, features, mask)
            new_params, collections = jax.lax.cond(due, reset, lambda *trees: trees, new_params, collections)
        skipped = jnp.maximum(skipped, report["skipped"])
        seconds = jnp.asarray(real.size / system.sample_rate, jnp.float32)
        metrics |= {"loss": loss, **terms, "grad_norm": report["grad_norm"], "skipped": skipped}
        metrics["audio_seconds"] = seconds
        return advance(state, new_params, new_opt_state, skipped, collections), metrics

    return step


def codec_evaluation(
    models: CodecModels, config: BiCodecTrainingConfig, system: SparkConfig
) -> Callable[[TrainState, Batch], Metrics]:
    """(state, batch) → mean losses of inference mode, `loss` their weighted sum; with a wave generator also `samples`
    [2, rows, samples], the first rows' originals and reconstructions to listen to."""

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        features, mask = _batch_features(models, config, system, state.params, batch)
        variables = codec_variables(state)
        if features is None:
            outputs = _from_tokens(models.codec, variables, batch)
        else:
            outputs = models.codec.apply(
                variables,
                features,
                batch["reference"],
                train=False,
                wave=config.phase == "full",
                mask=mask,
                condition_on_x_vector=state.step < config.d_vector_train_start,
            )
        terms = reconstruction_losses(outputs, features, batch["wave"], mask)
        metrics = terms | {"loss": sum(getattr(config.losses, name) * term for name, term in terms.items())}
        if features is not None:
            metrics["perplexity"] = outputs.perplexity
        if outputs.recons is not None:
            metrics["samples"] = jnp.stack([wave[:NUM_AUDIO_SAMPLES] for wave in (batch["wave"], outputs.recons)])
        return metrics

    return evaluate


def reconstruction_losses(
    outputs: BiCodecOutput,
    features: Float[Array, "batch frames features"] | None,
    wave: Float[Array, "batch samples"],
    mask: Mask = None,
) -> Metrics:
    """Unweighted: vq, features and, where the sizes agree, codes (mean squared errors) where there are features; mel
    where there is a waveform."""
    terms = {}
    if features is not None:
        where = None if mask is None else mask[..., None]
        error = lambda ours: jnp.mean(jnp.square(ours - features), where=where)  # noqa: E731
        terms = {"vq": outputs.vq_loss, "features": error(outputs.pred_feat)}
        if outputs.quantized.shape == features.shape:
            terms["codes"] = error(outputs.quantized)
    if outputs.recons is not None:
        terms["mel"] = losses.multi_resolution_mel_loss(outputs.recons, wave)
    return terms


def _batch_features(
    models: CodecModels, config: BiCodecTrainingConfig, system: SparkConfig, params: Any, batch: Batch
) -> tuple[Array | None, Mask]:
    """wav2vec2 features of the batch and their mask; None in the phase that starts from tokens."""
    if models.extractor is None:
        return None, None
    if "lengths" in batch:
        return utterance_features(models.extractor, params["wav2vec2"], batch["input_values"], batch["lengths"])
    context = round(config.data.context_seconds * system.sample_rate) // system.latent_hop_length
    tokens = batch["wave"].shape[1] // system.latent_hop_length
    return extract_features(models.extractor, params["wav2vec2"], batch["input_values"], context, tokens), None


def _from_tokens(codec: BiCodec, variables: Any, batch: Batch) -> BiCodecOutput:
    """Only a waveform, as at inference."""
    recons = codec.apply(variables, batch["semantic_ids"], batch["global_ids"], method=codec.detokenize)
    absent = dict.fromkeys(field.name for field in dataclasses.fields(BiCodecOutput))
    return BiCodecOutput(**absent | {"recons": recons})


def _reset_dead_codes(
    models: CodecModels,
    config: BiCodecTrainingConfig,
    state: TrainState,
    features: Array,
    mask: Mask,
    params: Any,
    collections: Any,
) -> tuple[Any, Any]:
    """Codes of low usage move onto random latents of the batch and count as evenly used."""
    variables = {"params": {**params["generator"], **params["frozen"]}, **collections}
    latents, weights = models.codec.apply(variables, features, mask, method=quantizer_latents)
    usage = collections["code_statistics"]["quantizer"]["cluster_size"]
    even = jnp.sum(weights) / models.codec.config.quantizer.codebook_size
    key = jax.random.fold_in(jax.random.key(config.loop.seed), state.step)
    chosen = latents[jax.random.choice(key, latents.shape[0], usage.shape, p=weights / jnp.sum(weights))]
    dead = usage < config.dead_code_reset.below * even
    old = params["generator"]["quantizer"]
    new = old | {"codebook": jnp.where(dead[:, None], chosen, old["codebook"])}
    statistics = {"quantizer": {"cluster_size": jnp.where(dead, even, usage)}}
    params = params | {"generator": params["generator"] | {"quantizer": new}}
    return params, collections | {"code_statistics": statistics}


def quantizer_latents(
    codec: BiCodec, features: Float[Array, "batch time features"], mask: Mask
) -> tuple[Float[Array, "latents dim"], Float[Array, " latents"]]:
    """What the codebook's rows stand for, of the whole batch, with weight 0 on padding."""
    latents, quantizer = codec.encoder(features, mask), codec.quantizer
    sizes = quantizer.config
    if sizes.input_dim != sizes.codebook_dim:
        latents = quantizer.in_project(latents)
    mask = downsample_mask(mask, math.prod(codec.config.encoder.sample_ratios))
    weights = jnp.ones(latents.shape[:2]) if mask is None else mask.astype(jnp.float32)
    return latents.reshape(-1, latents.shape[-1]), weights.reshape(-1)
