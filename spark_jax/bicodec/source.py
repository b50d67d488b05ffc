"""Harmonic source: sines, pulses and noise at the pitch that a wave generator is told.

Optional, and none of the release: a generator of few steps repeats what it makes every frame, because its latents hold
no phase, and that sounds like a whisper. The phase is a running sum of the pitch, so it is the one thing in the codec
that has no end to what it remembers. Speech that is made in parts hands it on: `phase_starts` of a part, with one frame
of context on either side, says the phase at which the next part begins; an `Anchor` of it goes into the generator.

Phases are counted in 2⁻³² of a cycle as unsigned integers: the sum wraps where a cycle ends, is exact, and is the
same in whatever parts or order it is summed.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from spark_jax.config import SourceConfig
from spark_jax.nn.linear import Linear
from spark_jax.nn.mask import Mask

CYCLE = 2.0**32  # units of phase
NOISE_SEED = 0
MIN_FREQUENCY = 1e-6  # cycles a sample; the logarithm of padding must be a number
MAX_FREQUENCY = 0.45  # cycles a sample; beyond it a phase would alias
WEIGHT_LIMIT = 0.02  # of the first weights: a generator learns to use the source, it is not drowned by it

Phase = UInt32[Array, " batch"]


@flax.struct.dataclass
class Pitch:
    """What a harmonic source is told of each frame.

    Attributes:
      f0: fundamental frequency in Hz, positive on unvoiced frames too (what lies between their neighbors).
      voicing: 1 where the frame is voiced, 0 where not.
    """

    f0: Float[Array, "batch frames"]
    voicing: Float[Array, "batch frames"]


@flax.struct.dataclass
class Anchor:
    """Where in an utterance the frames of an array lie.

    Attributes:
      phase: at the start of frame `origin`.
      frame: number in the utterance of frame `origin`; the noise follows it.
      origin: static. Frames of context before it. The first of them has no left neighbor here, so its pitch may differ
        from that of the whole utterance: one frame more than the generator hears makes every sample the same.
    """

    phase: Phase
    frame: Int[Array, ""]
    origin: int = flax.struct.field(pytree_node=False, default=0)


def interpolate(values: Float[Array, "batch frames"], hop: int, mask: Mask = None) -> Float[Array, "batch frames hop"]:
    """Interpolates linearly between the middles of frames; beyond the first and the last one it is constant.

    Args:
      values: of each frame; those outside the mask do not matter.
      hop: samples of a frame.
      mask: frames that are no padding, which follows them.
    """
    left = jnp.concatenate([values[:, :1], values[:, :-1]], axis=1)
    right = jnp.concatenate([values[:, 1:], values[:, -1:]], axis=1)
    if mask is not None:
        following = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
        right = jnp.where(following, right, values)
    offset = (jnp.arange(hop) + 0.5) / hop - 0.5
    left, center, right = left[..., None], values[..., None], right[..., None]
    return center + jnp.where(offset < 0, offset * (center - left), offset * (right - center))


def sample_steps(
    frequency: Float[Array, "batch frames"], hop: int, mask: Mask = None
) -> UInt32[Array, "batch frames hop"]:
    """The advance of the phase in each sample, the frequency's logarithm interpolated between frames.

    Args:
      frequency: cycles a sample, positive.
      hop: samples of a frame.
      mask: frames that are no padding.
    """
    frequency = jnp.exp(interpolate(jnp.log(jnp.maximum(frequency, MIN_FREQUENCY)), hop, mask))
    return (jnp.clip(frequency, 0.0, MAX_FREQUENCY) * CYCLE).astype(jnp.uint32)


def phase_starts(
    frequency: Float[Array, "batch frames"], hop: int, mask: Mask = None, anchor: Anchor | None = None
) -> UInt32[Array, "batch frames+1"]:
    """The phase at the start of each frame, and at the end of the last.

    Args:
      frequency: cycles a sample.
      hop: samples of a frame.
      mask: frames that are no padding.
      anchor: where the frames lie; None: an utterance begins with them, at phase 0.
    """
    return _starts(jnp.sum(sample_steps(frequency, hop, mask), axis=-1, dtype=jnp.uint32), anchor)


def _starts(frame_steps: UInt32[Array, "batch frames"], anchor: Anchor | None) -> UInt32[Array, "batch frames+1"]:
    starts = jnp.pad(jnp.cumsum(frame_steps, axis=1, dtype=jnp.uint32), ((0, 0), (1, 0)))
    return starts if anchor is None else starts + (anchor.phase - starts[:, anchor.origin])[:, None]


def pulse_train(cycles: Float[Array, "..."], frequency: Float[Array, "..."]) -> Float[Array, "..."]:
    """Cosines of all harmonics below half the sample rate, of unit power together.

    The uppermost one fades in as it comes below: the sum is continuous in the frequency.

    Args:
      cycles: phase of the fundamental.
      frequency: its cycles a sample.
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
) -> Float[Array, "frames samples"]:
    """Gaussian noise that depends on a frame's number in the utterance alone.

    Args:
      frames: how many.
      samples: of a frame.
      stream: number of the noise; others are independent.
      anchor: where the frames lie.
      key: random key; None: always the same one, so that the same tokens give the same samples.
    """
    key = jax.random.fold_in(jax.random.key(NOISE_SEED) if key is None else key, stream)
    numbers = jnp.arange(frames) + (0 if anchor is None else anchor.frame - anchor.origin)
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), (samples,)))(numbers)


def source_channels(
    config: SourceConfig,
    frequency: Float[Array, "batch frames"],
    voicing: Float[Array, "batch frames"],
    rates: tuple[int, ...],
    mask: Mask = None,
    anchor: Anchor | None = None,
    key: Array | None = None,
) -> dict[int, Float[Array, "batch samples channels"]]:
    """The source at the sample rate of each block that hears it.

    Args:
      config: which blocks, and which of them hear noise.
      frequency: of the fundamental in cycles a sample of the output, positive.
      voicing: 0 to 1.
      rates: how many samples each block of the generator makes of one.
      mask: frames that are no padding, which follows them.
      anchor: where the frames lie; None: an utterance begins with them.
      key: of the noise; None: the fixed one.

    Returns:
      By block: voicing times sine, cosine and pulse train, voicing, and noise where it is heard. No gradient goes
      through them: the phase of a wrong pitch has none worth following.
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
        # In the middle of what is one sample to the block.
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
    """Adds a linear map of the source's channels to a block's; without bias, so silence adds nothing."""

    dtype: jnp.dtype = jnp.float32

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
