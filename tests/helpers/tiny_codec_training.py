"""A codec training small enough for tests, with a drawn state in place of an initialized one."""

import dataclasses

import jax
import numpy as np
from helpers import tiny_model
from helpers.quick_compile import quickly
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.config import DiscriminatorConfig, SourceConfig
from spark_jax.data.config import CodecDataConfig
from spark_jax.training.codec.config import BiCodecTrainingConfig, DeadCodeResetConfig
from spark_jax.training.codec.models import codec_models
from spark_jax.training.codec.state import init_state
from spark_jax.training.codec.step import codec_step
from spark_jax.training.config import LoopConfig
from spark_jax.training.optimizer import OptimizerConfig

SYSTEM = tiny()
# With a harmonic source.
VOICED_SYSTEM = dataclasses.replace(
    SYSTEM,
    bicodec=dataclasses.replace(
        SYSTEM.bicodec,
        decoder=dataclasses.replace(SYSTEM.bicodec.decoder, source=SourceConfig(blocks=(0, 1), noise_blocks=(1,))),
    ),
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, decay_steps=100)
GAN = BiCodecTrainingConfig(
    d_vector_train_start=1,
    freeze=("encoder",),
    discriminator=DiscriminatorConfig(
        periods=(3,),
        period_channels=(4, 4),
        fft_sizes=(128,),
        hop_lengths=(32,),
        window_lengths=(100,),
        bands=(0.0, 0.5, 1.0),
        spectral_channels=2,
    ),
    data=CodecDataConfig(segment_seconds=0.1, context_seconds=0.02, batch_segments=8, threads=1),
    generator_optimizer=OPTIMIZER,
    discriminator_optimizer=OPTIMIZER,
    loop=LoopConfig(steps=4, log_every=1, evaluate_every=2, checkpoint_every=2),
)
FEATURES = dataclasses.replace(
    GAN, phase="features", freeze=(), dead_code_reset=DeadCodeResetConfig(every=2, until=4, below=1.0)
)


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"wave": 1600, "input_values": 2240, "reference": SYSTEM.ref_segment_samples}
    return {name: rng.normal(0, 0.3, (8, size)).astype(np.float32) for name, size in sizes.items()}


def start(config, devices, adversarial, system=SYSTEM):
    """A drawn state, and a step that compiles at the first call; on so many devices, or on a mesh."""
    mesh = sharding.make_mesh(devices) if isinstance(devices, int) else devices
    models = codec_models(config, system)
    boxed = jax.eval_shape(lambda: init_state(models, config, system))
    shapes, shardings = sharding.unbox(boxed), sharding.tree_shardings(mesh, boxed)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = state.replace(params=tiny_model.draw(shapes.params), collections=tiny_model.draw(shapes.collections))
    step = sharding.jit_step(codec_step(models, config, system, adversarial), mesh, shardings)
    if mesh.devices.flat[0].platform == "cpu":
        step = quickly(step)
    return jax.device_put(state, shardings), lambda state, batch: step(state, sharding.put_batch(mesh, batch))


def host(tree):
    return jax.tree.map(np.array, tree)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
