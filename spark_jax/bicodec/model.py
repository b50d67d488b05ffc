"""BiCodec: speech ↔ semantic tokens (what is said, 50 a second) and global tokens (who says it; paper §3.1)."""

import math
from collections.abc import Collection

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spark_jax.audio.mel import mel_spectrogram
from spark_jax.bicodec.decoder import Decoder
from spark_jax.bicodec.encoder import Encoder
from spark_jax.bicodec.pitch import PitchHead, PitchPrediction, PitchTarget, pitch_to_feed
from spark_jax.bicodec.quantize import FactorizedVectorQuantizer
from spark_jax.bicodec.source import Anchor, Pitch
from spark_jax.bicodec.speaker import SpeakerEncoder
from spark_jax.bicodec.wave_generator import WaveGenerator
from spark_jax.config import BiCodecConfig
from spark_jax.nn.mask import Mask, downsample_mask, upsample_mask


@flax.struct.dataclass
class BiCodecOutput:
    """One training or evaluation pass; all floats are float32."""

    recons: Float[Array, "batch samples"] | None  # None where the wave generator was left out
    pred_feat: Float[Array, "batch time features"]
    quantized: Float[Array, "batch tokens latent"]  # what the codes stand for, straight-through
    vq_loss: Float[Array, ""]
    perplexity: Float[Array, ""]
    active_num: Float[Array, ""]
    x_vector: Float[Array, "batch speaker"]
    d_vector: Float[Array, "batch speaker"]
    semantic_ids: Int[Array, "batch tokens"]
    global_ids: Int[Array, "batch global"]
    pitch: PitchPrediction | None = None  # of a codec with a harmonic source


class BiCodec(nn.Module):
    """The codec. Collections: "params", "batch_stats" (ECAPA's batch norms), "code_statistics" (code usage).

    Initialize through `__call__`, with the wave generator. `dtype` is the compute type of the convolutional
    stacks; quantizers and losses stay in float32. With `remat` the blocks of these stacks are computed again for the
    gradient.
    """

    config: BiCodecConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c.encoder, self.dtype, self.remat)
        self.quantizer = FactorizedVectorQuantizer(c.quantizer)
        self.speaker_encoder = SpeakerEncoder(c.speaker_encoder, self.dtype)
        self.prenet = Decoder(c.prenet, self.dtype, self.remat)
        self.postnet = Decoder(c.postnet, self.dtype, self.remat)
        self.wave_generator = WaveGenerator(c.decoder, self.dtype, self.remat)
        if c.decoder.source is not None:
            self.pitch_head = PitchHead()

    def __call__(
        self,
        features: Float[Array, "batch time features"],
        reference_wave: Float[Array, "batch reference"],
        train: bool,
        condition_on_x_vector: bool | Bool[Array, ""] = False,
        wave: bool = True,
        frozen: Collection[str] = (),
        mask: Mask = None,
        pitch: PitchTarget | None = None,
        noise_key: Array | None = None,
    ) -> BiCodecOutput:
        """Reconstructs features and waveform, straight-through.

        Args:
          features: wav2vec2 features.
          reference_wave: samples at 16 kHz of a reference clip of the same speakers.
          train: static. Batch statistics in the batch norms and updates of "batch_stats" and
            "code_statistics", which must then be mutable.
          condition_on_x_vector: the speaker schedule (reference training step < d_vector_train_start): the
            decoder hears the x-vector instead of the d-vector. May be traced: switching compiles nothing.
          wave: static. False leaves the wave generator out, for training on features alone.
          frozen: parts that are not trained: their statistics are read as in evaluation and do not change.
          mask: frames of each item that are no padding; None: all. Padding counts in no loss or statistic of the
            quantizer, `pred_feat` is meaningless there.
          pitch: the recording's, which a harmonic source is fed; None: what the codec itself predicts.
          noise_key: of a harmonic source's noise; None: a fixed one.
        """
        token_mask = downsample_mask(mask, math.prod(self.config.encoder.sample_ratios))
        latents = self.encoder(features, mask)
        quantization = self.quantizer(latents, train and "quantizer" not in frozen, token_mask)
        mel = mel_spectrogram(reference_wave, self.config.mel_params)
        speaker = self.speaker_encoder(mel, train and "speaker_encoder" not in frozen)
        condition = jnp.where(condition_on_x_vector, speaker.x_vector, speaker.d_vector)
        x = self.prenet(quantization.quantized, condition, token_mask)
        frame_mask = upsample_mask(token_mask, math.prod(self.config.prenet.sample_ratios))
        latents = x + condition[:, None]
        prediction = self._predict_pitch(latents, condition)
        told = pitch_to_feed(prediction, pitch)
        return BiCodecOutput(
            recons=self._generate(latents, frame_mask, told, noise_key=noise_key) if wave else None,
            pred_feat=self.postnet(x, mask=frame_mask).astype(jnp.float32),
            quantized=quantization.quantized,
            vq_loss=quantization.loss,
            perplexity=quantization.perplexity,
            active_num=quantization.active_num,
            x_vector=speaker.x_vector,
            d_vector=speaker.d_vector,
            semantic_ids=quantization.ids,
            global_ids=speaker.ids,
            pitch=prediction,
        )

    def tokenize(
        self,
        features: Float[Array, "batch time features"],
        reference_wave: Float[Array, "batch reference"],
        mask: Mask = None,
    ) -> tuple[Int[Array, "batch tokens"], Int[Array, "batch global"]]:
        """Semantic and global token ids (int32); semantic ids outside the mask are meaningless."""
        semantic_ids = self.quantizer.tokenize(self.encoder(features, mask))
        mel = mel_spectrogram(reference_wave, self.config.mel_params)
        return semantic_ids, self.speaker_encoder.tokenize(mel)

    def detokenize(
        self,
        semantic_ids: Int[Array, "batch tokens"],
        global_ids: Int[Array, "batch global"],
        mask: Mask = None,
        pitch: Pitch | None = None,
        anchor: Anchor | None = None,
        noise_key: Array | None = None,
    ) -> Float[Array, "batch samples"]:
        """Waveform, 320 samples a token at the release's rates; samples outside the mask are zero.

        Args:
          semantic_ids: what is said.
          global_ids: who says it.
          mask: tokens that are no padding, which follows them.
          pitch: of the frames, for a codec with a harmonic source; None: what it predicts (`predict_pitch`).
          anchor: where the frames lie in an utterance that is made in parts; None: it begins with them.
          noise_key: of a harmonic source's noise; None: a fixed one.
        """
        condition = self.speaker_encoder.detokenize(global_ids)
        latents, frame_mask = self._latents(self.quantizer.detokenize(semantic_ids), condition, mask)
        if pitch is None:
            pitch = pitch_to_feed(self._predict_pitch(latents, condition), None)
        return self._generate(latents, frame_mask, pitch, anchor, noise_key)

    def predict_pitch(
        self,
        semantic_ids: Int[Array, "batch tokens"],
        global_ids: Int[Array, "batch global"],
        mask: Mask = None,
    ) -> Pitch:
        """The pitch of each frame that `detokenize` feeds to the harmonic source.

        Raises:
          ValueError: the codec has none.
        """
        condition = self.speaker_encoder.detokenize(global_ids)
        latents, _ = self._latents(self.quantizer.detokenize(semantic_ids), condition, mask)
        if (prediction := self._predict_pitch(latents, condition)) is None:
            raise ValueError("the codec has no harmonic source, and predicts no pitch")
        return prediction.decide()

    def wave_from_codes(
        self,
        semantic_ids: Int[Array, "batch tokens"],
        reference_wave: Float[Array, "batch reference"],
        train: bool,
        mask: Mask = None,
        pitch: PitchTarget | None = None,
        noise_key: Array | None = None,
    ) -> tuple[Float[Array, "batch samples"], PitchPrediction | None]:
        """Waveform of given semantic tokens by the speaker of a clip, for training both at once.

        Global tokens that say little of the voice are what a speaker branch learns where only features are
        reconstructed, in which there is no voice; here it hears the waveform's and the pitch's losses.

        Args:
          semantic_ids: what is said.
          reference_wave: samples at 16 kHz of clips of the speakers.
          train: static. Batch statistics in the batch norms, and updates of "batch_stats", which must be mutable.
          mask: tokens that are no padding, which follows them.
          pitch: the recording's, which a harmonic source is fed; None: what the codec itself predicts.
          noise_key: of a harmonic source's noise; None: a fixed one.

        Returns:
          Samples, and the predicted pitch of a codec with a harmonic source.
        """
        mel = mel_spectrogram(reference_wave, self.config.mel_params)
        condition = self.speaker_encoder(mel, train).d_vector
        latents, frame_mask = self._latents(self.quantizer.detokenize(semantic_ids), condition, mask)
        prediction = self._predict_pitch(latents, condition)
        return self._generate(latents, frame_mask, pitch_to_feed(prediction, pitch), noise_key=noise_key), prediction

    def _latents(
        self, quantized: Float[Array, "batch tokens latent"], condition: Float[Array, "batch speaker"], mask: Mask
    ) -> tuple[Float[Array, "batch frames channels"], Mask]:
        """What the wave generator hears, and the mask of its frames."""
        x = self.prenet(quantized, condition, mask)
        return x + condition[:, None], upsample_mask(mask, math.prod(self.config.prenet.sample_ratios))

    def _predict_pitch(
        self, latents: Float[Array, "batch frames channels"], condition: Float[Array, "batch speaker"]
    ) -> PitchPrediction | None:
        return None if self.config.decoder.source is None else self.pitch_head(latents, condition)

    def _generate(
        self,
        latents: Float[Array, "batch frames channels"],
        mask: Mask,
        pitch: Pitch | None,
        anchor: Anchor | None = None,
        noise_key: Array | None = None,
    ) -> Float[Array, "batch samples"]:
        return self.wave_generator(latents, mask, pitch, self.config.mel_params.sample_rate, anchor, noise_key)
