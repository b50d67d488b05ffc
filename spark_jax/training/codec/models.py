"""The modules and optimizers of a codec training."""

import jax.numpy as jnp
import optax
from flax import struct

from spark_jax.bicodec.discriminator import Discriminators
from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.optimizer import make_optimizer
from spark_jax.wav2vec2.model import Wav2Vec2


class CodecModels(struct.PyTreeNode):
    """The modules (no parameters) and optimizers of a run; all static.

    Attributes:
      extractor: None in the phase that starts from tokens.
      discriminators: None where none take part at any step.
    """

    codec: BiCodec = struct.field(pytree_node=False)
    extractor: Wav2Vec2 | None = struct.field(pytree_node=False)
    discriminators: Discriminators | None = struct.field(pytree_node=False)
    generator_optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    discriminator_optimizer: optax.GradientTransformation = struct.field(pytree_node=False)


def codec_models(config: BiCodecTrainingConfig, system: SparkConfig) -> CodecModels:
    """Returns the modules and optimizers that a configuration asks for."""
    dtype = jnp.dtype(config.dtype)
    return CodecModels(
        codec=BiCodec(system.bicodec, dtype, config.remat),
        extractor=None if config.phase == "wave" else Wav2Vec2(system.wav2vec2, dtype),
        discriminators=Discriminators(config.discriminator, config.remat, dtype) if config.adversarial else None,
        generator_optimizer=make_optimizer(config.generator_optimizer, config.loop.steps),
        discriminator_optimizer=make_optimizer(config.discriminator_optimizer, config.loop.steps),
    )
