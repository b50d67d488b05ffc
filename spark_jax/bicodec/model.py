"""BiCodec: speech ↔ semantic tokens (what is said, 50 per second) and global tokens (who says it; paper §3.1)."""

import math
from collections.abc import Collection

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spark_jax.audio.mel import mel_spectrogram
from spark_jax.bicodec.decoder import Decoder
from spark_jax.bicodec.encoder import Encoder
from spark_jax.bicodec.pitch import PitchHead, PitchPrediction, PitchTarget, pitch_to_feed
from spark_jax.bicodec.quantize import FactorizedVectorQuantizer
from spark_jax.bicodec.receptive_field import Context
from spark_jax.bicodec.source import Anchor, Phase, Pitch, phase_starts
from spark_jax.bicodec.speaker import SpeakerEncoder
from spark_jax.bicodec.wave_generator import WaveGenerator
from spark_jax.config import BiCodecConfig
from spark_jax.nn.mask import Mask, OutputMask, downsample_mask, upsample_mask


@flax.struct.dataclass
class BiCodecOutput:
    """Result of one training or evaluation pass; all floats are float32, and values that a pass skips are None."""

    recons: Float[Array, "batch samples"] | None
    pred_feat: Float[Array, "batch time features"] | None
    quantized: Float[Array, "batch tokens latent"] | None  # vectors of the codes, with straight-through gradients
    vq_loss: Float[Array, ""] | None
    perplexity: Float[Array, ""] | None
    active_num: Float[Array, ""] | None
    x_vector: Float[Array, "batch speaker"] | None
    d_vector: Float[Array, "batch speaker"] | None
    semantic_ids: Int[Array, "batch tokens"] | None
    global_ids: Int[Array, "batch global"] | None
    pitch: PitchPrediction | None = None  # of a codec with a harmonic source


class BiCodec(nn.Module):
    """The codec, with collections "params", "batch_stats" (ECAPA's batch norms), "code_statistics" (code usage).

    Initialize it through `__call__`, with the wave generator.

    Attributes:
      config: sizes.
      dtype: type of the convolutional stacks; quantizers and losses are float32.
      remat: whether the blocks of these stacks are computed again for the gradient.
    """

    config: BiCodecConfig
    dtype: DTypeLike = jnp.float32
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
        """Reconstructs features and waveform, with straight-through gradients.

        Args:
          features: wav2vec2 features.
          reference_wave: samples of a reference clip of the same speakers, at the configuration's sample rate.
          train: static; whether to use batch statistics in the batch norms and to update "batch_stats" and
            "code_statistics", which must then be mutable.
          condition_on_x_vector: whether the decoder is conditioned on the x-vector instead of the d-vector (reference:
            training step < d_vector_train_start). It may be traced, so that switching compiles nothing.
          wave: static; False skips the wave generator, for training on features alone.
          frozen: parts that are not trained: their statistics are read as in evaluation and do not change.
          mask: True for frames that are no padding; None: all. Padding counts in no loss or statistic of the quantizer,
            and `pred_feat` is meaningless there.
          pitch: pitch of the recordings, which a harmonic source is given; None: the codec's own prediction.
          noise_key: random key of a harmonic source's noise; None: a fixed one.
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
        """Returns semantic and global token ids (int32); semantic ids outside the mask are meaningless."""
        semantic_ids = self.quantizer.tokenize(self.encoder(features, mask))
        return semantic_ids, self.tokenize_speakers(reference_wave)

    def tokenize_speakers(self, reference_wave: Float[Array, "batch reference"]) -> Int[Array, "batch global"]:
        """Returns the global token ids (int32) of reference clips."""
        return self.speaker_encoder.tokenize(mel_spectrogram(reference_wave, self.config.mel_params))

    def detokenize(
        self,
        semantic_ids: Int[Array, "batch tokens"],
        global_ids: Int[Array, "batch global"],
        mask: Bool[Array, "batch tokens"] | None = None,
        pitch: Pitch | None = None,
        anchor: Anchor | None = None,
        noise_key: Array | None = None,
    ) -> Float[Array, "batch samples"]:
        """Returns the waveform, with 320 samples per token in the release; samples outside the mask are zero.

        Args:
          semantic_ids: what is said.
          global_ids: who says it.
          mask: True for tokens that are no padding, which follows them; None: all.
          pitch: pitch of the frames for a harmonic source; None: the codec's own prediction (`predict_pitch`).
          anchor: position of the frames in an utterance that is made in parts; None: it begins with them.
          noise_key: random key of a harmonic source's noise; None: a fixed one.
        """
        condition = self.speaker_encoder.detokenize(global_ids)
        latents, frame_mask = self._latents(self.quantizer.detokenize(semantic_ids), condition, mask)
        if pitch is None:
            pitch = pitch_to_feed(self._predict_pitch(latents, condition), None)
        return self._generate(latents, frame_mask, pitch, anchor, noise_key)

    def detokenize_part(
        self,
        semantic_ids: Int[Array, "batch window"],
        global_ids: Int[Array, "batch global"],
        mask: Bool[Array, "batch window"],
        phase: Phase,
        place: Int[Array, " batch"],
        advance: Int[Array, " batch"],
        prenet: Context,
        generator: Context,
    ) -> tuple[Float[Array, "batch samples"], Phase]:
        """Returns the samples of a part of an utterance, those that `detokenize` gives of the whole.

        Only the prenet sees all of the window: the wave generator, which costs far more, sees its own context.

        Args:
          semantic_ids: the prenet's context, the generator's, the tokens of the part, and both contexts again.
          global_ids: who says it.
          mask: True for tokens of the utterance: what lies before its beginning or after its end is padding.
          phase: of a harmonic source at the start of the part; zeros at the beginning.
          place: number of the part's first token in the utterance.
          advance: how many tokens after it the next part begins.
          prenet, generator: static; contexts of `receptive_field`, or shorter ones for an approximation.

        Returns:
          Samples, zeros outside of the mask, and the phase at the start of the next part.
        """
        condition = self.speaker_encoder.detokenize(global_ids)
        latents, frame_mask = self._latents(self.quantizer.detokenize(semantic_ids), condition, mask)
        ratio, tokens = math.prod(self.config.prenet.sample_ratios), semantic_ids.shape[1]
        heard = slice(prenet.before * ratio, (tokens - prenet.after) * ratio)
        latents, frame_mask = latents[:, heard], frame_mask[:, heard]
        anchor = Anchor(phase, place * ratio, origin=generator.before * ratio)
        pitch = pitch_to_feed(self._predict_pitch(latents, condition), None)
        samples = self._generate(latents, frame_mask, pitch, anchor)
        hop = math.prod(self.config.decoder.rates)
        if pitch is not None:
            starts = phase_starts(pitch.f0 / self.config.mel_params.sample_rate, hop, frame_mask, anchor)
            following = (generator.before + advance) * ratio
            phase = jnp.take_along_axis(starts, following[:, None], axis=1)[:, 0]
        own = slice(generator.before * ratio * hop, samples.shape[1] - generator.after * ratio * hop)
        return samples[:, own], phase

    def predict_pitch(
        self,
        semantic_ids: Int[Array, "batch tokens"],
        global_ids: Int[Array, "batch global"],
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Pitch:
        """Returns the pitch of each frame that `detokenize` gives to the harmonic source, with its arguments.

        Raises:
          ValueError: the codec has no harmonic source.
        """
        condition = self.speaker_encoder.detokenize(global_ids)
        latents, _ = self._latents(self.quantizer.detokenize(semantic_ids), condition, mask)
        if (prediction := self._predict_pitch(latents, condition)) is None:
            raise ValueError("the codec has no harmonic source, and predicts no pitch")
        return prediction.decide()

    def wave_from_codes(
        self,
        semantic_ids: Int[Array, "batch tokens"],
        reference_wave: Float[Array, "batch reference"] | None,
        train: bool,
        mask: Bool[Array, "batch tokens"] | None = None,
        pitch: PitchTarget | None = None,
        noise_key: Array | None = None,
        global_ids: Int[Array, "batch global"] | None = None,
    ) -> tuple[Float[Array, "batch samples"], PitchPrediction | None]:
        """Returns the waveform of given semantic tokens for training, in the voice of a clip or of given global tokens.

        A speaker branch that is trained on the reconstruction of features alone learns little about voices, since the
        features carry little; here the losses of waveform and pitch reach it.

        Args:
          semantic_ids: what is said.
          reference_wave: samples of reference clips of the speakers, at the configuration's sample rate; None: the
            voice is that of `global_ids`.
          train: static; whether to use batch statistics in the batch norms and to update "batch_stats", which must then
            be mutable.
          mask: True for tokens that are no padding, which follows them; None: all.
          pitch: pitch of the recordings, which a harmonic source is given; None: the codec's own prediction.
          noise_key: random key of a harmonic source's noise; None: a fixed one.
          global_ids: who says it, where there is no clip.

        Returns:
          Samples, and the predicted pitch if the codec has a harmonic source.
        """
        if reference_wave is None:
            condition = self.speaker_encoder.detokenize(global_ids)
        else:
            mel = mel_spectrogram(reference_wave, self.config.mel_params)
            condition = self.speaker_encoder(mel, train).d_vector
        latents, frame_mask = self._latents(self.quantizer.detokenize(semantic_ids), condition, mask)
        prediction = self._predict_pitch(latents, condition)
        return self._generate(latents, frame_mask, pitch_to_feed(prediction, pitch), noise_key=noise_key), prediction

    def _latents(
        self,
        quantized: Float[Array, "batch tokens latent"],
        condition: Float[Array, "batch speaker"],
        mask: Bool[Array, "batch tokens"] | None,
    ) -> tuple[Float[Array, "batch frames channels"], OutputMask]:
        """Returns the input of the wave generator and the mask of its frames."""
        x = self.prenet(quantized, condition, mask)
        return x + condition[:, None], upsample_mask(mask, math.prod(self.config.prenet.sample_ratios))

    def _predict_pitch(
        self, latents: Float[Array, "batch frames channels"], condition: Float[Array, "batch speaker"]
    ) -> PitchPrediction | None:
        return None if self.config.decoder.source is None else self.pitch_head(latents, condition)

    def _generate(
        self,
        latents: Float[Array, "batch frames channels"],
        mask: OutputMask,
        pitch: Pitch | None,
        anchor: Anchor | None = None,
        noise_key: Array | None = None,
    ) -> Float[Array, "batch samples"]:
        return self.wave_generator(latents, mask, pitch, self.config.mel_params.sample_rate, anchor, noise_key)
