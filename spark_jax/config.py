"""Frozen dataclasses: the only schema of a model. Field names follow the release's own configuration files.

A model directory's `config.json` is `SparkConfig` written out; a size is a value of these classes, never a
branch in code. `RELEASE` holds the sizes of the 0.5B release, `tiny()` those that tests can afford.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import dacite

from spark_jax.errors import SparkError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """Mel spectrogram of the speaker branch (magnitude, slaney scale and norm, no logarithm)."""

    sample_rate: int = 16_000
    n_fft: int = 1024
    win_length: int = 640
    hop_length: int = 320
    mel_fmin: float = 10.0
    mel_fmax: float | None = None  # None: half the sample rate
    num_mels: int = 128


@dataclasses.dataclass(frozen=True)
class VocosConfig:
    """A stack of Vocos (ConvNeXt) blocks with sampling stages: semantic encoder, prenet and postnet."""

    input_channels: int
    vocos_dim: int
    vocos_intermediate_dim: int
    vocos_num_layers: int
    out_channels: int
    sample_ratios: tuple[int, ...] = (1, 1)
    condition_dim: int | None = None  # AdaLN on a vector of this size; None: plain LayerNorm
    use_tanh_at_final: bool = False


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """Factorized vector quantizer of the semantic tokens (paper §3.1.2)."""

    input_dim: int = 1024
    codebook_size: int = 8192
    codebook_dim: int = 8
    commitment: float = 0.25
    codebook_loss_weight: float = 2.0
    decay: float = 0.99  # of the moving average of code usage
    threshold_ema_dead_code: float = 0.2  # a code with less usage than this counts as inactive


@dataclasses.dataclass(frozen=True)
class SpeakerEncoderConfig:
    """ECAPA-TDNN, Perceiver resampler and residual FSQ: the global tokens (paper §3.1.3)."""

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


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Harmonic source of the wave generator, for small codecs; the release has none.

    Blocks are numbered from 0. The output of the first block of the release's rates has 400 samples a second, too few
    for a voice's fundamental.
    """

    blocks: tuple[int, ...] = (1, 2, 3)  # whose transposed convolution's output it is added to
    noise_blocks: tuple[int, ...] = (2, 3)  # of these, with a channel of noise


@dataclasses.dataclass(frozen=True)
class WaveGeneratorConfig:
    """Snake / transposed-convolution generator (DAC decoder); the product of `rates` is the hop."""

    input_channel: int = 1024
    channels: int = 1536
    rates: tuple[int, ...] = (8, 5, 4, 2)
    kernel_sizes: tuple[int, ...] = (16, 11, 8, 4)
    source: SourceConfig | None = None  # None: as the release; with it the codec has a pitch head too

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
class BiCodecConfig:
    """BiCodec (paper §3.1); the defaults are the 0.5B release's."""

    mel_params: MelConfig = MelConfig()
    encoder: VocosConfig = VocosConfig(1024, 384, 2048, 12, 1024)
    decoder: WaveGeneratorConfig = WaveGeneratorConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    speaker_encoder: SpeakerEncoderConfig = SpeakerEncoderConfig()
    prenet: VocosConfig = VocosConfig(1024, 384, 2048, 12, 1024, condition_dim=1024)
    postnet: VocosConfig = VocosConfig(1024, 384, 2048, 6, 1024)


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Multi-period and multi-band STFT discriminators of the codec's training; the defaults are DAC's.

    They are no part of a model directory. Empty `periods` or `fft_sizes` leave that kind out.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    fft_sizes: tuple[int, ...] = (2048, 1024, 512)
    hop_lengths: tuple[int, ...] = (512, 256, 128)
    window_lengths: tuple[int, ...] = (1200, 600, 300)
    bands: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # edges, as fractions of the spectrum
    spectral_channels: int = 32


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """wav2vec2 with layer-norm feature extractor and stable layer norm; defaults: wav2vec2-large-xlsr-53.

    Only the first `max(feature_layers)` transformer layers exist in this library: nothing above the last tap
    is ever needed.
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


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """Qwen2 or Qwen3 decoder; the defaults are Qwen2.5-0.5B with the release's vocabulary.

    Qwen3 is `attention_bias=False, qk_norm=True` with a `head_dim` of its own.
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
            # Equal to the one that names the size, and so in comparisons, hashes and config.json.
            object.__setattr__(self, "head_dim", self.hidden_size // max(1, self.num_attention_heads))


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a model's tokens are drawn where a request does not say; the defaults are the release's."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95


@dataclasses.dataclass(frozen=True)
class SparkConfig:
    """The whole text-to-speech system: what `config.json` of a model directory holds."""

    sample_rate: int = 16_000
    latent_hop_length: int = 320  # samples a semantic token
    ref_segment_duration: float = 6.0  # seconds of reference audio behind the global tokens
    volume_normalize: bool = True
    bicodec: BiCodecConfig = BiCodecConfig()
    wav2vec2: Wav2Vec2Config = Wav2Vec2Config()
    llm: Qwen2Config = Qwen2Config()
    sampling: SamplingConfig = SamplingConfig()

    @property
    def ref_segment_samples(self) -> int:
        """Length of the reference clip: whole tokens only (reference BiCodecTokenizer.get_ref_clip)."""
        hop = self.latent_hop_length
        return int(self.sample_rate * self.ref_segment_duration) // hop * hop


RELEASE = SparkConfig()


def tiny() -> SparkConfig:
    """A whole system of some 100 thousand parameters with every part of the release, and few layers of each: for tests,
    whose time is mostly that of compiling layers.
    """
    return SparkConfig(
        ref_segment_duration=0.5,
        bicodec=BiCodecConfig(
            mel_params=MelConfig(num_mels=16),
            encoder=VocosConfig(16, 12, 24, 1, 20),
            decoder=WaveGeneratorConfig(input_channel=24, channels=32, rates=(20, 16), kernel_sizes=(42, 32)),
            quantizer=QuantizerConfig(input_dim=20, codebook_size=64, codebook_dim=4),
            speaker_encoder=SpeakerEncoderConfig(
                input_dim=16,
                out_dim=24,
                latent_dim=8,
                token_num=32,
                fsq_levels=(4, 4, 4),
                ecapa_channels=16,
                ecapa_latent_channels=24,
                se_bottleneck=8,
                astp_bottleneck=8,
                res2_scale=4,
                perceiver_depth=1,
                perceiver_heads=2,
                perceiver_head_dim=4,
                perceiver_ff_mult=2,
            ),
            prenet=VocosConfig(20, 12, 24, 1, 24, condition_dim=24),
            postnet=VocosConfig(24, 12, 24, 1, 16),
        ),
        wav2vec2=Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            feature_layers=(1, 2),
        ),
        llm=Qwen2Config(
            vocab_size=2048,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=4096,
        ),
    )


def from_mapping(cls: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """Builds a configuration dataclass from plain data (YAML, JSON); unknown keys and wrong types are errors.

    Args:
      cls: a dataclass of this library.
      mapping: nested plain data; lists stand for tuples.
      source: where the data comes from, for the message (a file name).

    Raises:
      SparkError: an unknown or missing key, or a value of another type than the field's.
    """
    if not isinstance(mapping, Mapping):
        raise SparkError(f"{source}: expected a mapping of {cls.__name__} fields, found {type(mapping).__name__}")
    _check_lists(cls, mapping, source)
    settings = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _as_float})
    try:
        config = dacite.from_dict(cls, dict(mapping), settings)
    except (dacite.DaciteError, TypeError) as error:  # the latter from a class that computes with its sizes
        raise SparkError(f"{source}: {' '.join(str(error).split())}") from error
    _refuse_booleans(config, source)
    return config


def _refuse_booleans(config: Any, source: str) -> None:
    """To Python True is a number, and dacite lets it pass for one."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _refuse_booleans(value, f"{source}: {field.name}")
        elif "bool" not in str(field.type) and bool in map(type, value if type(value) is tuple else (value,)):
            raise SparkError(f"{source}: {field.name} is {value!r}, expected a number")


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse of `from_mapping`: nested dictionaries, ready for JSON or YAML.

    A decoder's `head_dim` that follows from its other sizes is left out: where they are changed, it follows them.
    """
    mapping = dataclasses.asdict(config)
    for decoder in (mapping, mapping.get("llm")):
        if isinstance(decoder, dict) and "head_dim" in decoder:
            if decoder["head_dim"] == decoder["hidden_size"] // max(1, decoder["num_attention_heads"]):
                del decoder["head_dim"]
    return mapping


def _check_lists(cls: type, mapping: Mapping[str, Any], source: str) -> None:
    """dacite makes tuples of lists, and fails without the field's name where there is none."""
    for field in dataclasses.fields(cls):
        value = mapping.get(field.name)
        kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        nested = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if nested and isinstance(value, Mapping):
            _check_lists(nested[0], value, f"{source}: {field.name}")
            continue
        plain = tuple(kind for kind in kinds if typing.get_origin(kind) is None)
        if field.name not in mapping or isinstance(value, (list, tuple, *plain)):
            continue
        if tuple in map(typing.get_origin, kinds):
            raise SparkError(f"{source}: {field.name} is {value!r}, expected a list")


def _as_float(value: Any) -> Any:
    """YAML writes 10 and, without a dot, 1e-4 (a string): both mean a float where a field is one."""
    if isinstance(value, bool):
        return value  # left for the type check, which names the field
    if isinstance(value, int):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
