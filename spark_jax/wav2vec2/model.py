"""wav2vec2 features: convolutional front end and pre-norm transformer, whose hidden states are averaged.

BiCodec's semantic tokens are quantized from these features: the mean of a few hidden states of a wav2vec2 with
layer-norm feature extractor and stable layer norm (paper §3.1.1; reference sparktts/models/audio_tokenizer.py,
`extract_wav2vec2_features`). All arrays are channels-last.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spark_jax import config as config_lib
from spark_jax.nn import norm
from spark_jax.nn.convolution import Initializer
from spark_jax.nn.gelu import gelu
from spark_jax.nn.linear import flat_dot_general
from spark_jax.wav2vec2 import positional

Length = TypeVar("Length", int, np.ndarray, jax.Array)
Lengths = Int[Array | np.ndarray, " batch"]  # number of samples of each item without padding


def num_frames(length: Length, config: config_lib.Wav2Vec2Config) -> Length:
    """Returns the number of frames that the feature extractor makes of `length` samples (400 → 1, 16000 → 49).

    Takes Python integers and, elementwise, integer arrays; the result is 0 where the audio is shorter than one frame.
    """
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = (length - kernel) // stride + 1
    # Inputs that are too short lead to negative counts, which floor division keeps at or below 0.
    return max(length, 0) if isinstance(length, int) else length.clip(0)


def num_samples(frames: int, config: config_lib.Wav2Vec2Config) -> int:
    """Returns the length of the longest input with this many frames: the inverse of `num_frames`."""
    samples = frames + 1
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    return samples - 1


def normalize_input(
    samples: Float[Array | np.ndarray, "batch samples"], lengths: Lengths | None = None
) -> Float[Array, "batch samples"]:
    """Scales each item to zero mean and unit variance over its true length, in float32; padding becomes 0.

    The variance is that of the population, plus 1e-7 (reference: transformers' Wav2Vec2FeatureExtractor).

    Args:
      lengths: number of samples of each item without padding; None: all.
    """
    samples = jnp.asarray(samples, jnp.float32)
    if lengths is None:
        valid = jnp.ones(samples.shape, bool)
    else:
        valid = jnp.arange(samples.shape[1]) < jnp.asarray(lengths)[:, None]
    mean = jnp.mean(samples, axis=1, keepdims=True, where=valid)
    variance = jnp.var(samples, axis=1, keepdims=True, where=valid)
    return jnp.where(valid, (samples - mean) / jnp.sqrt(variance + 1e-7), 0.0)


class Wav2Vec2(nn.Module):
    """wav2vec2 up to the last tapped layer.

    Attributes:
      config: sizes.
      dtype: type of the computation; parameters, norms and the attention softmax are float32.
      num_layers: number of transformer layers; None: up to the last tap, `max(config.feature_layers)`.
    """

    config: config_lib.Wav2Vec2Config
    dtype: DTypeLike = jnp.float32
    num_layers: int | None = None

    def __call__(
        self, input_values: Float[Array, "batch samples"], lengths: Lengths | None = None
    ) -> Float[Array, "batch frames hidden"]:
        """Returns the mean of the hidden states at `config.feature_layers` in float32.

        Args:
          input_values: samples from `normalize_input`.
          lengths: number of samples of each item without padding; frames beyond them are masked, so that a padded batch
            gives the features of its single items, followed by meaningless frames. None: nothing is masked, which is
            what the reference does.
        """
        return self._run(input_values, lengths, collect=False)[0]

    def hidden_states(
        self, input_values: Float[Array, "batch samples"], lengths: Lengths | None = None
    ) -> Float[Array, "layers batch frames hidden"]:
        """Returns all `num_layers + 1` hidden states: [0] is the transformer's input, [i] the output of layer i.

        There is no final layer norm. The arguments are those of `__call__`.
        """
        return self._run(input_values, lengths, collect=True)[1]

    def features_and_last(
        self, input_values: Float[Array, "batch samples"], lengths: Lengths | None = None
    ) -> tuple[Float[Array, "batch frames hidden"], Float[Array, "batch frames hidden"]]:
        """Returns the result of `__call__` and the output of the last of `num_layers` layers, with its arguments."""
        features, _, last = self._run(input_values, lengths, collect=False)
        return features, last

    @nn.compact
    def _run(
        self, input_values: Float[Array, "batch samples"], lengths: Lengths | None, collect: bool
    ) -> tuple[
        Float[Array, "batch frames hidden"],
        Float[Array, "layers batch frames hidden"] | None,
        Float[Array, "batch frames hidden"],
    ]:
        config = self.config
        depth = max(config.feature_layers) if self.num_layers is None else self.num_layers
        if not 0 <= min(config.feature_layers) <= max(config.feature_layers) <= depth:
            raise ValueError(f"feature_layers {config.feature_layers} must lie within 0…{depth} layers")
        x = FeatureExtractor(config, self.dtype, name="feature_extractor")(input_values.astype(self.dtype))
        x = FeatureProjection(config, self.dtype, name="feature_projection")(x)
        valid = None
        if lengths is not None:
            valid = jnp.arange(x.shape[1]) < num_frames(jnp.asarray(lengths), config)[:, None]
            x = jnp.where(valid[..., None], x, 0)
        x = x + gelu(positional.PositionalConv(config, self.dtype, name="positional_conv")(x))
        # The mean over the taps is accumulated inside the scan, so that the hidden states are never stacked.
        weights = np.zeros(depth + 1, np.float32)
        for layer in config.feature_layers:
            weights[layer] += 1.0 / len(config.feature_layers)
        layers = nn.scan(
            _TappedLayer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, self.dtype, collect, name="layers")
        carry = (x, weights[0] * x.astype(jnp.float32))
        (last, features), states = layers(carry, jnp.asarray(weights[1:]), valid)
        return features, jnp.concatenate([x[None], states]) if collect else None, last


class FeatureExtractor(nn.Module):
    """Strided convolutions without padding, each followed by LayerNorm over channels and exact GELU."""

    config: config_lib.Wav2Vec2Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, input_values: Float[Array, "batch samples"]) -> Float[Array, "batch frames conv"]:
        config = self.config
        x = input_values[..., None]
        for i, (channels, kernel, stride) in enumerate(
            zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
        ):
            x = nn.Conv(
                channels,
                (kernel,),
                (stride,),
                padding="VALID",
                use_bias=config.conv_bias,
                dtype=self.dtype,
                kernel_init=_partitioned(nn.initializers.kaiming_normal(), None, "conv_in", "conv_out"),
                bias_init=_partitioned(nn.initializers.zeros, "conv_out"),
                name=f"conv_{i}",
            )(x)
            # torch's default eps, which the reference's feature extractor uses whatever `layer_norm_eps` is.
            x = gelu(norm.LayerNorm(1e-5, "conv_out", self.dtype, name=f"norm_{i}")(x))
            self.sow("intermediates", f"features_{i}", x)
        return x


class FeatureProjection(nn.Module):
    """LayerNorm and a linear map from the convolutions' features to the transformer's width."""

    config: config_lib.Wav2Vec2Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames conv"]) -> Float[Array, "batch frames hidden"]:
        x = norm.LayerNorm(self.config.layer_norm_eps, "conv_in", self.dtype, name="norm")(x)
        x = _dense(self.config.hidden_size, ("conv_in", "embed"), self.dtype, name="projection")(x)
        self.sow("intermediates", "projected", x)
        return x


class TransformerLayer(nn.Module):
    """Pre-norm ("stable layer norm") layer: self-attention and a GELU feed-forward, each with a residual."""

    config: config_lib.Wav2Vec2Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames hidden"], valid: Bool[Array, "batch frames"] | None
    ) -> Float[Array, "batch frames hidden"]:
        config = self.config
        y = norm.LayerNorm(config.layer_norm_eps, "embed", self.dtype, name="attention_norm")(x)
        y = SelfAttention(config, self.dtype, name="attention")(y, valid)
        self.sow("intermediates", "attention_output", y)
        x = x + y
        y = norm.LayerNorm(config.layer_norm_eps, "embed", self.dtype, name="mlp_norm")(x)
        y = gelu(_dense(config.intermediate_size, ("embed", "mlp"), self.dtype, name="up")(y))
        return x + _dense(config.hidden_size, ("mlp", "embed"), self.dtype, name="down")(y)


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention with biases; padded frames are not attended to."""

    config: config_lib.Wav2Vec2Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames hidden"], valid: Bool[Array, "batch frames"] | None
    ) -> Float[Array, "batch frames hidden"]:
        hidden, heads = self.config.hidden_size, self.config.num_attention_heads
        shape = (heads, hidden // heads)
        axes = ("embed", "heads", "head_dim")
        query, key, value = (_dense(shape, axes, self.dtype, name=name)(x) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * shape[1] ** -0.5, key).astype(jnp.float32)
        if valid is not None:
            scores = jnp.where(valid[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return _dense(hidden, ("heads", "head_dim", "embed"), self.dtype, axis=(-2, -1), name="out")(y)


Carry = tuple[Float[Array, "batch frames hidden"], Float[Array, "batch frames hidden"]]


class _TappedLayer(nn.Module):
    """Step of the scan over layers: (state, weighted sum of the states), weight of this layer → next carry."""

    config: config_lib.Wav2Vec2Config
    dtype: DTypeLike
    collect: bool

    @nn.compact
    def __call__(
        self, carry: Carry, weight: Float[Array, ""], valid: Bool[Array, "batch frames"] | None
    ) -> tuple[Carry, Float[Array, "batch frames hidden"] | None]:
        x, features = carry
        x = TransformerLayer(self.config, self.dtype, name="layer")(x, valid)
        return (x, features + weight * x.astype(jnp.float32)), x if self.collect else None


def _partitioned(initializer: Initializer, *axes: str | None) -> Callable[..., Any]:
    return nn.with_logical_partitioning(initializer, axes)


def _dense(
    features: int | tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: DTypeLike,
    name: str,
    axis: int | tuple[int, ...] = -1,
) -> nn.DenseGeneral:
    """Returns a linear map; `axes` names the kernel's dimensions, inputs first."""
    outputs = 1 if isinstance(features, int) else len(features)
    return nn.DenseGeneral(
        features,
        axis=axis,
        dtype=dtype,
        name=name,
        dot_general=flat_dot_general,
        kernel_init=_partitioned(nn.initializers.normal(0.02), *axes),
        bias_init=_partitioned(nn.initializers.zeros, *axes[-outputs:]),
    )
