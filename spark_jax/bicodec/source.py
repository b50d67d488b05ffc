"""Harmonic source: sines, pulses and noise at a given pitch, which are added inside a wave generator.

It is optional, and the release has none. A generator that was trained for few steps repeats its output in every frame,
because the latents carry no phase, and this sounds like whispering. The source's phase is the running sum of the pitch.

The phase is the only state in the decoder without a finite memory. To make an utterance in parts, compute
`phase_starts` of a part with one frame of context on either side, and give the phase at which the next part begins to
the generator as an `Anchor`. `BiCodec.detokenize_part` does so.

Phases are unsigned integers in units of 2⁻³² cycles: their sum wraps at the end of a cycle, is exact, and does not
depend on the order of summation.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from spark_jax.config import SourceConfig
from spark_jax.nn.linear import Linear
from spark_jax.nn.mask import Mask

CYCLE = 2.0**32  # in units of phase
NOISE_SEED = 0
MIN_FREQUENCY = 1e-6  # in cycles per sample, so that the logarithm of padding is finite
MAX_FREQUENCY = 0.45  # in cycles per sample, to prevent aliasing
WEIGHT_LIMIT = 0.02  # of initial weights, so that the source does not drown a fresh generator

Phase = UInt32[Array, " batch"]


@flax.struct.dataclass
class Pitch:
    """Pitch of each frame, the input of a harmonic source.

    Attributes:
      f0: fundamental frequency in Hz; positive on unvoiced frames too, where it is interpolated.
      voicing: 1 for voiced frames, 0 for unvoiced ones.
    """

    f0: Float[Array, "batch frames"]
    voicing: Float[Array, "batch frames"]


@flax.struct.dataclass
class Anchor:
    """Position of an array's frames in an utterance.

    Attributes:
      phase: phase at the start of frame `origin`.
      frame: number of frame `origin` in the utterance, which determines the noise; one for all or for each item.
      origin: static; number of frames of context before it. The first one lacks its left neighbor, so that its
        interpolated pitch differs from that in the whole utterance: the context must exceed the generator's receptive
        field by one frame for equal samples.
    """

    phase: Phase
    frame: Int[Array, "*batch"]
    origin: int = flax.struct.field(pytree_node=False, default=0)


def interpolate(values: Float[Array, "batch frames"], hop: int, mask: Mask = None) -> Float[Array, "batch frames hop"]:
    """Interpolates linearly between the middles of frames, and is constant beyond the first and the last one.

    Args:
      values: one for each frame; values outside the mask are ignored.
      hop: number of samples per frame.
      mask: True for frames that are no padding, which comes before and after them; None: all.
    """
    left = jnp.concatenate([values[:, :1], values[:, :-1]], axis=1)
    right = jnp.concatenate([values[:, 1:], values[:, -1:]], axis=1)
    if mask is not None:
        preceding = jnp.pad(mask[:, :-1], ((0, 0), (1, 0)))
        following = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
        left = jnp.where(preceding, left, values)
        right = jnp.where(following, right, values)
    offset = (jnp.arange(hop) + 0.5) / hop - 0.5
    left, center, right = left[..., None], values[..., None], right[..., None]
    return center + jnp.where(offset < 0, offset * (center - left), offset * (right - center))


def sample_steps(
    frequency: Float[Array, "batch frames"], hop: int, mask: Mask = None
) -> UInt32[Array, "batch frames hop"]:
    """Returns the increment of the phase in each sample, with the logarithm of the frequency interpolated.

    Args:
      frequency: positive frequencies in cycles per sample.
      hop: number of samples per frame.
      mask: True for frames that are no padding; None: all.
    """
    frequency = jnp.exp(interpolate(jnp.log(jnp.maximum(frequency, MIN_FREQUENCY)), hop, mask))
    return (jnp.clip(frequency, 0.0, MAX_FREQUENCY) * CYCLE).astype(jnp.uint32)


def phase_starts(
    frequency: Float[Array, "batch frames"], hop: int, mask: Mask = None, anchor: Anchor | None = None
) -> UInt32[Array, "batch frames+1"]:
    """Returns the phase at the start of each frame and at the end of the last one.

    Args:
      frequency: positive frequencies in cycles per sample.
      hop: number of samples per frame.
      mask: True for frames that are no padding; None: all.
      anchor: position of the frames; None: an utterance begins with them, at phase 0.
    """
    return _starts(jnp.sum(sample_steps(frequency, hop, mask), axis=-1, dtype=jnp.uint32), anchor)


def _starts(frame_steps: UInt32[Array, "batch frames"], anchor: Anchor | None) -> UInt32[Array, "batch frames+1"]:
    starts = jnp.pad(jnp.cumsum(frame_steps, axis=1, dtype=jnp.uint32), ((0, 0), (1, 0)))
    return starts if anchor is None else starts + (anchor.phase - starts[:, anchor.origin])[:, None]


def pulse_train(cycles: Float[Array, "..."], frequency: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the sum of the cosines of all harmonics below half the sample rate, scaled to unit power.

    The highest one fades in, so that the sum is continuous in the frequency.

    Args:
      cycles: phase of the fundamental in cycles.
      frequency: frequency of the fundamental in cycles per sample.
    """
    count = 0.5 / jnp.maximum(frequency, 1e-6)
    whole = jnp.floor(count)
    nearest = cycles - jnp.round(cycles)
    sine = jnp.sin(jnp.pi * nearest)
    regular = jnp.abs(nearest) > 1e-5
    # Σ cos(2πkθ) for k from 1 to K; at θ = 0 it is K.
    odd = jnp.mod((2.0 * whole + 1.0) * nearest, 2.0)
    kernel = jnp.where(regular, 0.5 * (jnp.sin(jnp.pi * odd) / jnp.where(regular, sine, 1.0) - 1.0), whole)
    fading = (count - whole) * jnp.cos(2.0 * jnp.pi * jnp.mod((whole + 1.0) * nearest, 1.0))
    return (kernel + fading) * jnp.sqrt(2.0 / jnp.maximum(count, 1.0))


def source_noise(
    frames: int, samples: int, stream: int, anchor: Anchor | None = None, key: Array | None = None
) -> Float[Array, "*batch frames samples"]:
    """Returns Gaussian noise that depends only on the number of each frame in the utterance.

    Args:
      frames: number of frames.
      samples: number of samples per frame.
      stream: number of the noise; streams are independent.
      anchor: position of the frames; None: an utterance begins with them.
      key: random key; None: a fixed one, so that the same tokens give the same samples.
    """
    key = jax.random.fold_in(jax.random.key(NOISE_SEED) if key is None else key, stream)
    numbers = jnp.arange(frames)
    if anchor is not None:
        numbers = numbers + (anchor.frame[..., None] - anchor.origin)
    drawn = jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), (samples,)))(numbers.reshape(-1))
    return drawn.reshape(*numbers.shape, samples)


def source_channels(
    config: SourceConfig,
    frequency: Float[Array, "batch frames"],
    voicing: Float[Array, "batch frames"],
    rates: tuple[int, ...],
    mask: Mask = None,
    anchor: Anchor | None = None,
    key: Array | None = None,
) -> dict[int, Float[Array, "batch _samples _channels"]]:
    """Returns the source's channels for each block, at the sample rate of the block's output.

    Args:
      config: blocks that the source is added to, and those with noise.
      frequency: positive fundamental frequencies in cycles per sample of the output.
      voicing: values from 0 to 1.
      rates: upsampling rates of the generator's blocks.
      mask: True for frames that are no padding, which follows them; None: all.
      anchor: position of the frames; None: an utterance begins with them.
      key: random key of the noise; None: a fixed one.

    Returns:
      By block number: voicing times sine, cosine and pulse train, voicing, and noise if the block has it. There is no
      gradient through them, since that of a wrong pitch's phase would be useless.
    """
    frequency, voicing = jax.lax.stop_gradient((frequency, voicing))
    hop = math.prod(rates)
    batch, frames = frequency.shape
    steps = sample_steps(frequency, hop, mask)
    inside = jnp.cumsum(steps, axis=-1, dtype=jnp.uint32) - steps
    starts = _starts(jnp.sum(steps, axis=-1, dtype=jnp.uint32), anchor)[:, :-1, None] + inside
    loudness = interpolate(voicing, hop, mask)
    channels, length = {}, 1
    for block, rate in enumerate(rates):
        length *= rate
        if block not in config.blocks:
            continue
        # At the middle of the output samples that make up one sample of the block.
        group = hop // length
        place = slice(group // 2, None, group)
        phase, step = starts[..., place], steps[..., place]
        if group % 2:
            phase = phase + step // 2
        cycles = phase.astype(jnp.float32) / CYCLE
        local = step.astype(jnp.float32) * (group / CYCLE)
        voiced = loudness[..., place]
        angle = 2.0 * jnp.pi * cycles
        parts = [voiced * wave for wave in (jnp.sin(angle), jnp.cos(angle), pulse_train(cycles, local))] + [voiced]
        if block in config.noise_blocks:
            noise = source_noise(frames, length, block, anchor, key)
            parts.append(jnp.broadcast_to(noise, (batch, frames, length)))
        channels[block] = jnp.stack(parts, axis=-1).reshape(batch, frames * length, len(parts))
    return channels


class SourceMix(nn.Module):
    """Adds a linear map of the source's channels to those of a block, without bias."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch samples features"], source: Float[Array, "batch samples channels"]
    ) -> Float[Array, "batch samples features"]:
        start = nn.initializers.uniform(2.0 * WEIGHT_LIMIT)
        mix = Linear(
            inputs.shape[-1],
            axes=(None, "conv_out"),
            use_bias=False,
            kernel_init=lambda *args: start(*args) - WEIGHT_LIMIT,
            dtype=self.dtype,
            name="mix",
        )
        return inputs + mix(source)
