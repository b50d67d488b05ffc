"""Speaker branch: mel spectrogram of a reference clip → global tokens and the d-vector (paper §3.1.3).

Mel frames have no mask because reference clips have a fixed length.
"""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from spark_jax.bicodec.ecapa import Ecapa
from spark_jax.bicodec.fsq import ResidualFSQ
from spark_jax.bicodec.perceiver import PerceiverResampler
from spark_jax.config import SpeakerEncoderConfig
from spark_jax.nn.linear import Linear, no_single_row


@flax.struct.dataclass
class SpeakerOutput:
    """Both speaker vectors, and the global tokens from which the d-vector is made."""

    x_vector: Float[Array, "batch out"]
    d_vector: Float[Array, "batch out"]
    ids: Int[Array, "batch global"]


class SpeakerEncoder(nn.Module):
    """ECAPA → Perceiver → residual FSQ → linear map.

    Ids are [batch, quantizers · token_num], quantizer by quantizer; the release has one quantizer, so one id per token.
    """

    config: SpeakerEncoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.ecapa = Ecapa(c, self.dtype)
        self.perceiver = PerceiverResampler(c, self.dtype)
        self.quantizer = ResidualFSQ(c.latent_dim, c.fsq_levels, c.fsq_num_quantizers)
        self.project = Linear(c.out_dim)

    def __call__(self, mel: Float[Array, "batch frames mels"], train: bool) -> SpeakerOutput:
        x_vector, latent = self.ecapa(mel, train)
        codes, ids = self.quantizer(self.perceiver(latent))
        return SpeakerOutput(x_vector, self._d_vector(codes), ids.reshape(ids.shape[0], -1))

    def tokenize(self, mel: Float[Array, "batch frames mels"]) -> Int[Array, "batch global"]:
        """Returns the global tokens of a mel spectrogram."""
        return self(mel, train=False).ids

    def detokenize(self, ids: Int[Array, "batch global"]) -> Float[Array, "batch out"]:
        """Returns the d-vector of global tokens."""
        padded = no_single_row(ids)
        padded = padded.reshape(padded.shape[0], self.config.fsq_num_quantizers, self.config.token_num)
        return self._d_vector(self.quantizer.decode(padded))[: ids.shape[0]]

    def _d_vector(self, codes: Float[Array, "batch tokens latent"]) -> Float[Array, "batch out"]:
        # Flattened channel-major, as the reference flattens [batch, latent, tokens].
        return self.project(jnp.swapaxes(codes, 1, 2).reshape(codes.shape[0], -1))
