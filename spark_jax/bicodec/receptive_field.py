"""How many tokens around a token its samples depend on, by the sizes of a codec: what an exact part of speech needs.

The convolutions are followed backward from the samples of one token, as an interval of the frames that they hear.
"""

import dataclasses
import math

from spark_jax.bicodec.sampling import STAGE_LAYERS
from spark_jax.bicodec.wave_generator import DILATIONS
from spark_jax.config import BiCodecConfig, VocosConfig

REACH = 3  # frames on either side that a kernel of 7 hears


@dataclasses.dataclass(frozen=True)
class Context:
    """Tokens before and after a stretch of speech.

    Attributes:
      before, after: numbers of tokens.
    """

    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class _Interval:
    """Frames `first` to `last`, relative to the first of a token."""

    first: int
    last: int

    def wider(self, frames: int) -> "_Interval":
        return _Interval(self.first - frames, self.last + frames)

    def divided(self, ratio: int) -> "_Interval":
        """Returns the frames at a rate that is `ratio` times lower."""
        return _Interval(self.first // ratio, self.last // ratio)

    def before_transposed(self, kernel: int, stride: int, padding: int) -> "_Interval":
        """Returns what a transposed convolution hears: i where i·stride ≤ output + padding < i·stride + kernel."""
        return _Interval(-((kernel - 1 - self.first - padding) // stride), (self.last + padding) // stride)

    def union(self, other: "_Interval") -> "_Interval":
        return _Interval(min(self.first, other.first), max(self.last, other.last))


def prenet_context(config: VocosConfig) -> Context:
    """Returns the tokens around a token that the prenet hears for its frames."""
    heard = _Interval(0, math.prod(config.sample_ratios) - 1).wider(_backbone(config.vocos_num_layers))
    for ratio in reversed(config.sample_ratios):
        heard = heard.wider(_backbone(STAGE_LAYERS))
        if ratio > 1:
            filtered = heard.before_transposed(2 * ratio, ratio, ratio // 2 + ratio % 2)
            heard = heard.divided(ratio).union(filtered)
    return Context(-heard.first, heard.last)


def generator_context(config: BiCodecConfig) -> Context:
    """Returns the tokens around a token whose frames the wave generator hears for its samples.

    A harmonic source hears the pitch of one frame more, between which it interpolates.
    """
    decoder, frames = config.decoder, math.prod(config.prenet.sample_ratios)
    length = math.prod(decoder.rates)  # samples of a frame, at the rate where we are
    heard, pitch = _Interval(0, frames * length - 1).wider(REACH), None
    for block, (rate, kernel) in reversed(list(enumerate(zip(decoder.rates, decoder.kernel_sizes, strict=True)))):
        heard = heard.wider(REACH * sum(DILATIONS))
        if decoder.source is not None and block in decoder.source.blocks:
            told = heard.divided(length).wider(1)
            pitch = told if pitch is None else pitch.union(told)
        heard = heard.before_transposed(kernel, rate, (kernel - rate) // 2)
        length //= rate
    heard = heard.wider(REACH)
    heard = heard if pitch is None else heard.union(pitch)
    tokens = heard.divided(frames)
    return Context(-tokens.first, tokens.last)


def _backbone(layers: int) -> int:
    return REACH * (1 + layers)  # of the embedding and of each block
