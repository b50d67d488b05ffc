"""Frozen dataclasses, the only schema of a model. Their field names follow the release's configuration files.

The `config.json` of a model directory holds a `SparkConfig`. Sizes are values of these classes, never branches in code.
`RELEASE` has the sizes of the 0.5B release.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from spark_jax.dataclass_reader import PlainNumbers, read_dataclass
from spark_jax.errors import SparkError
from spark_jax.text_config import TextConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MelConfig(PlainNumbers):
    """Mel spectrogram of the speaker branch (magnitude, slaney scale and norm, no logarithm)."""

    sample_rate: int = 16_000
    n_fft: int = 1024
    win_length: int = 640
    hop_length: int = 320
    mel_fmin: float = 10.0
    mel_fmax: float | None = None  # None: half the sample rate
    num_mels: int = 128

    def __post_init__(self):
        nyquist = self.sample_rate / 2
        highest = nyquist if self.mel_fmax is None else self.mel_fmax
        if not 0 <= self.mel_fmin < highest <= nyquist:
            raise SparkError(
                f"mel_params: mel_fmin {self.mel_fmin} and mel_fmax {self.mel_fmax} do not fit sample_rate "
                f"{self.sample_rate}, expected 0 ≤ mel_fmin < mel_fmax ≤ {nyquist:g}"
            )
        if not 0 < self.win_length <= self.n_fft or self.hop_length < 1:
            raise SparkError(
                f"mel_params: win_length is {self.win_length}, n_fft {self.n_fft} and hop_length {self.hop_length}, "
                f"expected 0 < win_length ≤ n_fft and a positive hop_length"
            )


@dataclasses.dataclass(frozen=True)
class VocosConfig(PlainNumbers):
    """A stack of Vocos (ConvNeXt) blocks with sampling stages: semantic encoder, prenet, and postnet."""

    input_channels: int
    vocos_dim: int
    vocos_intermediate_dim: int
    vocos_num_layers: int
    out_channels: int
    sample_ratios: tuple[int, ...] = (1, 1)
    condition_dim: int | None = None  # AdaLN on a vector of this size; None: plain LayerNorm
    use_tanh_at_final: bool = False


@dataclasses.dataclass(frozen=True)
class QuantizerConfig(PlainNumbers):
    """Factorized vector quantizer of the semantic tokens (paper §3.1.2)."""

    input_dim: int = 1024
    codebook_size: int = 8192
    codebook_dim: int = 8
    commitment: float = 0.25
    codebook_loss_weight: float = 2.0
    decay: float = 0.99  # of the moving average of code usage
    threshold_ema_dead_code: float = 0.2  # codes with less usage count as inactive


@dataclasses.dataclass(frozen=True)
class SpeakerEncoderConfig(PlainNumbers):
    """ECAPA-TDNN, Perceiver resampler, and residual FSQ of the global tokens (paper §3.1.3)."""

    input_dim: int = 128  # mel bands
    out_dim: int = 1024
    latent_dim: int = 128
    token_num: int = 32
    fsq_levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    fsq_num_quantizers: int = 1
    ecapa_channels: int = 512
    ecapa_latent_channels: int = 1536
    se_bottleneck: int = 128
    astp_bottleneck: int = 128
    res2_scale: int = 8
    perceiver_depth: int = 2
    perceiver_heads: int = 8
    perceiver_head_dim: int = 64
    perceiver_ff_mult: int = 4
    # Spread of the Perceiver's latents before training. It has no norms: from nearly equal latents a small one can end
    # with global tokens that all say the same.
    latent_std: float = 0.02


@dataclasses.dataclass(frozen=True)
class SourceConfig(PlainNumbers):
    """Harmonic source of the wave generator, for small codecs; the release has none."""

    # It is added to the output of their transposed convolutions; that of block 0 has too few samples per second.
    blocks: tuple[int, ...] = (1, 2, 3)
    noise_blocks: tuple[int, ...] = (2, 3)  # those of `blocks` that get a channel of noise


@dataclasses.dataclass(frozen=True)
class WaveGeneratorConfig(PlainNumbers):
    """Wave generator of Snake and transposed convolutions (DAC's decoder); the product of `rates` is the hop."""

    input_channel: int = 1024
    channels: int = 1536
    rates: tuple[int, ...] = (8, 5, 4, 2)
    kernel_sizes: tuple[int, ...] = (16, 11, 8, 4)
    source: SourceConfig | None = None  # None: as in the release; otherwise the codec has a pitch head too

    def __post_init__(self):
        if self.source is None:
            return
        blocks = range(len(self.rates))
        if not self.source.blocks or not set(self.source.blocks) <= set(blocks):
            expected = f"some of {', '.join(map(str, blocks))}"
            raise SparkError(f"source: blocks is {self.source.blocks}, expected {expected}")
        if not set(self.source.noise_blocks) <= set(self.source.blocks):
            raise SparkError(f"source: noise_blocks is {self.source.noise_blocks}, expected some of its blocks")


@dataclasses.dataclass(frozen=True)
class BiCodecConfig(PlainNumbers):
    """BiCodec (paper §3.1); the defaults are those of the 0.5B release."""

    mel_params: MelConfig = MelConfig()
    encoder: VocosConfig = VocosConfig(1024, 384, 2048, 12, 1024)
    decoder: WaveGeneratorConfig = WaveGeneratorConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    speaker_encoder: SpeakerEncoderConfig = SpeakerEncoderConfig()
    prenet: VocosConfig = VocosConfig(1024, 384, 2048, 12, 1024, condition_dim=1024)
    postnet: VocosConfig = VocosConfig(1024, 384, 2048, 6, 1024)


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig(PlainNumbers):
    """Multi-period and multi-band STFT discriminators of the codec's training; the defaults are DAC's.

    Model directories do not contain them. Empty `periods` or `fft_sizes` leave out discriminators of that kind.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    fft_sizes: tuple[int, ...] = (2048, 1024, 512)
    hop_lengths: tuple[int, ...] = (512, 256, 128)
    window_lengths: tuple[int, ...] = (1200, 600, 300)
    bands: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # edges, as fractions of the spectrum
    spectral_channels: int = 32


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config(PlainNumbers):
    """wav2vec2 with layer-norm feature extractor and stable layer norm; the defaults are wav2vec2-large-xlsr-53.

    Features need only the first `max(feature_layers)` transformer layers, so this library keeps no others.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 24  # of the source model; layers above the last tap are not kept
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5
    feature_layers: tuple[int, ...] = (11, 14, 16)  # hidden states whose mean is the feature

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.conv_stride)

    @property
    def frame_length(self) -> int:
        """Samples that the convolutions see for one frame."""
        length = 1
        for kernel, stride in reversed(list(zip(self.conv_kernel, self.conv_stride, strict=True))):
            length = (length - 1) * stride + kernel
        return length


@dataclasses.dataclass(frozen=True)
class Qwen2Config(PlainNumbers):
    """Qwen2 or Qwen3 decoder; the defaults are Qwen2.5-0.5B with the release's vocabulary.

    Qwen3 has `attention_bias=False`, `qk_norm=True`, and a `head_dim` of its own.
    """

    vocab_size: int = 166_000
    hidden_size: int = 896
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    intermediate_size: int = 4864
    max_position_embeddings: int = 32_768
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    head_dim: int | None = None  # None: hidden_size // num_attention_heads; an int once constructed
    attention_bias: bool = True  # of queries, keys and values (the output projection never has one)
    qk_norm: bool = False  # RMSNorm of each head's queries and keys, before the rotary positions

    def __post_init__(self):
        if self.head_dim is None:
            # Set here, so that comparisons and hashes do not depend on whether the size was given.
            object.__setattr__(self, "head_dim", self.hidden_size // max(1, self.num_attention_heads))


@dataclasses.dataclass(frozen=True)
class SamplingConfig(PlainNumbers):
    """Default sampling of a model's tokens, which a request may override; the defaults are those of the release."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95


@dataclasses.dataclass(frozen=True)
class SparkConfig(PlainNumbers):
    """The whole text-to-speech system, as `config.json` of a model directory holds it.

    Rates that contradict each other are an error: a codec would learn from another spectrum, or at other positions.

    Raises:
      SparkError: the rates of the parts do not fit each other; the message lists all contradictions with their keys.
    """

    sample_rate: int = 16_000
    latent_hop_length: int = 320  # samples per semantic token
    ref_segment_duration: float = 6.0  # seconds of reference audio from which global tokens are made
    volume_normalize: bool = True
    max_semantic_tokens: int = 3000  # of one utterance: 60 s at the release's rates
    bicodec: BiCodecConfig = BiCodecConfig()
    wav2vec2: Wav2Vec2Config = Wav2Vec2Config()
    llm: Qwen2Config = Qwen2Config()
    sampling: SamplingConfig = SamplingConfig()
    text: TextConfig = TextConfig()

    def __post_init__(self):
        if problems := list(_contradictions(self)):
            raise SparkError("; ".join(problems))

    @property
    def token_rate(self) -> float:
        """Number of semantic tokens per second."""
        return self.sample_rate / self.latent_hop_length

    @property
    def ref_segment_samples(self) -> int:
        """Number of samples of the reference clip, a multiple of the hop (reference BiCodecTokenizer.get_ref_clip)."""
        hop = self.latent_hop_length
        return int(self.sample_rate * self.ref_segment_duration) // hop * hop


def _contradictions(config: SparkConfig) -> Iterator[str]:
    """Yields the contradictions among a system's rates, one line each."""
    codec, front_end = config.bicodec, config.wav2vec2
    for name in ("sample_rate", "latent_hop_length", "max_semantic_tokens"):
        if getattr(config, name) < 1:
            yield f"{name} is {getattr(config, name)}, expected a positive number"
    if codec.mel_params.sample_rate != config.sample_rate:
        yield (
            f"bicodec.mel_params.sample_rate is {codec.mel_params.sample_rate}, "
            f"expected that of the system, sample_rate {config.sample_rate}"
        )
    upsampled, rates = math.prod(codec.prenet.sample_ratios), math.prod(codec.decoder.rates)
    if upsampled * rates != config.latent_hop_length:
        yield (
            f"bicodec.decoder.rates {codec.decoder.rates} make {rates} samples of a frame and bicodec.prenet."
            f"sample_ratios {codec.prenet.sample_ratios} make {upsampled} frames of a token, "
            f"expected together latent_hop_length {config.latent_hop_length}"
        )
    downsampled = math.prod(codec.encoder.sample_ratios)
    if front_end.hop_length * downsampled != config.latent_hop_length:
        yield (
            f"wav2vec2.conv_stride {front_end.conv_stride} makes a feature of {front_end.hop_length} samples and "
            f"bicodec.encoder.sample_ratios {codec.encoder.sample_ratios} make a token of {downsampled} features, "
            f"expected together latent_hop_length {config.latent_hop_length}"
        )
    if upsampled * math.prod(codec.postnet.sample_ratios) != downsampled:
        yield (
            f"bicodec.postnet.sample_ratios {codec.postnet.sample_ratios} and bicodec.prenet.sample_ratios "
            f"{codec.prenet.sample_ratios} do not make as many features of a token as bicodec.encoder.sample_ratios "
            f"{codec.encoder.sample_ratios} take"
        )


RELEASE = SparkConfig()


def from_mapping(cls: type[T], mapping: Any, source: str) -> T:
    """Makes a configuration from plain data (YAML, JSON); unknown keys and wrong types are errors.

    Args:
      cls: a dataclass of this library.
      mapping: nested plain data, with lists for tuples.
      source: origin of the data for messages, such as a file name.

    Raises:
      SparkError: a key is unknown or missing, or a value has another type than its field.
    """
    if cls is SparkConfig and isinstance(mapping, Mapping):
        mapping = _absent_sections(mapping) | dict(mapping)
    return read_dataclass(cls, mapping, source)


def _absent_sections(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Returns sections at a model directory's own rates for the parts that it does not have.

    Their sizes are never read, but the defaults would contradict the other sections if the rates are not those of the
    release.
    """
    rate, hop = (mapping.get(name, getattr(RELEASE, name)) for name in ("sample_rate", "latent_hop_length"))
    if (rate, hop) == (RELEASE.sample_rate, RELEASE.latent_hop_length) or {type(rate), type(hop)} != {int}:
        return {}
    codec, front_end, ratio = {"mel_params": {"sample_rate": rate}}, RELEASE.wav2vec2, 1
    with contextlib.suppress(AttributeError, TypeError):  # malformed sections are reported when they are read
        if "wav2vec2" in mapping:
            ratio = max(1, hop // math.prod(mapping["wav2vec2"].get("conv_stride", front_end.conv_stride)))
        elif "bicodec" in mapping:
            ratio = math.prod(mapping["bicodec"].get("encoder", {}).get("sample_ratios", (1,)))
    for name, ratios in {"encoder": (ratio,), "prenet": (1,), "postnet": (ratio,)}.items():
        codec[name] = dataclasses.asdict(getattr(RELEASE.bicodec, name)) | {"sample_ratios": ratios}
    codec["decoder"] = {"rates": (hop,), "kernel_sizes": (2 * hop,)}
    stride = hop // max(1, ratio)
    wav2vec2 = {"conv_dim": (front_end.conv_dim[0],), "conv_kernel": (stride,), "conv_stride": (stride,)}
    return {"bicodec": codec, "wav2vec2": wav2vec2}


def to_mapping(config: Any) -> dict[str, Any]:
    """Returns a configuration as nested dictionaries for JSON or YAML: the inverse of `from_mapping`.

    A decoder's `head_dim` is left out if it follows from the other sizes, so that it follows changes of these.
    """
    mapping = dataclasses.asdict(config)
    for decoder in (mapping, mapping.get("llm")):
        if not isinstance(decoder, dict) or "head_dim" not in decoder:
            continue
        if decoder["head_dim"] == decoder["hidden_size"] // max(1, decoder["num_attention_heads"]):
            del decoder["head_dim"]
    return mapping
