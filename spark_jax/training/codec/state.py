"""The codec training's state: a fresh one, given parameters put into it, and the codec's own variables out of it.

Its trees: `params` is {"generator": trained parts, "frozen": the other parts, "wav2vec2": …, "discriminator": …},
`opt_state` {"generator": …, "discriminator": …}; the collections are the codec's.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spark_jax.config import SparkConfig
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.models import CodecModels
from spark_jax.training.state import TrainState


def init_state(models: CodecModels, config: BiCodecTrainingConfig, system: SparkConfig) -> TrainState:
    """Returns a fresh state with Linen's boxes, for `sharding.initialize`."""
    keys = jax.random.split(jax.random.key(config.loop.seed), 3)
    samples = jnp.zeros((1, system.sample_rate))
    features = jnp.zeros((1, 8, system.wav2vec2.hidden_size))
    reference = jnp.zeros((1, system.ref_segment_samples))
    variables = dict(models.codec.init(keys[0], features, reference, train=False))
    params = dict(variables.pop("params"))
    frozen = {name: params.pop(name) for name in config.frozen_parts if name in params}
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
    """Returns the state with given values in place of fresh ones.

    Args:
      pretrained: under "wav2vec2" the extractor's parameters, under "bicodec" what `codec_variables` gives; each may
        be absent.
    """
    params, collections = dict(state.params), state.collections
    if "wav2vec2" in pretrained:
        params["wav2vec2"] = pretrained["wav2vec2"]
    if "bicodec" in pretrained:
        collections = dict(pretrained["bicodec"])
        parts = collections.pop("params")
        params |= {group: {name: parts[name] for name in params[group]} for group in ("generator", "frozen")}
    return jax.device_put(state.replace(params=params, collections=collections), shardings)


def codec_variables(state: TrainState) -> dict[str, Any]:
    """Returns the codec's variables (parameters, statistics) out of a train state: what other programs load."""
    return {"params": {**state.params["generator"], **state.params["frozen"]}, **state.collections}
