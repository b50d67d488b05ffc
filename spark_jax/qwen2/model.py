"""The Qwen2 decoder (arXiv 2407.10671): grouped-query attention with q, k, v biases, RoPE, SwiGLU, RMSNorm.

Qwen3 (arXiv 2505.09388) is the same decoder without biases and with an RMSNorm of each head's queries and keys.

The parameters of all layers are stacked, [layers, ...], and one body is traced for all of them (`nn.scan`), so that
compile time does not grow with depth.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spark_jax import sharding
from spark_jax.config import Qwen2Config
from spark_jax.nn.attention import AttentionBackend, backend_mask, grouped_query_attention, self_attention
from spark_jax.nn.embedding import Embedding
from spark_jax.nn.fused_attention import keep_attention
from spark_jax.nn.linear import flat_dot_general, wide_einsum
from spark_jax.nn.rms_norm import RMSNorm
from spark_jax.nn.rope import apply_rotary, rotary_angles
from spark_jax.nn.swiglu import swiglu
from spark_jax.qwen2.cache import KVCache
from spark_jax.qwen2.near_cache import NearRecent
from spark_jax.qwen2.slot_attention import Block, NearBlock
from spark_jax.qwen2.slot_cache import Recent

INIT_SCALE = 0.02  # Qwen2's initializer_range

# What a layer saves for its gradient besides its input; everything else is computed again.
Remat = Literal["none", "full", "attention", "dots"]
_keep = jax.checkpoint_policies
_REMAT_POLICIES = {
    "full": _keep.nothing_saveable,
    "attention": keep_attention,  # kernels do not run again
    "dots": _keep.save_from_both_policies(_keep.dots_with_no_batch_dims_saveable, keep_attention),
}


class Projection(nn.Module):
    """Linear map over the last `inputs` axes; its kernel (and bias) have the logical `axes`."""

    features: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: DTypeLike
    inputs: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        init = nn.with_logical_partitioning(nn.initializers.normal(INIT_SCALE), self.axes)
        kernel = self.param("kernel", init, (*x.shape[x.ndim - self.inputs :], *self.features), jnp.float32)
        contracted = tuple(range(x.ndim - self.inputs, x.ndim)), tuple(range(self.inputs))
        product = flat_dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (contracted, ((), ())))
        if not self.bias:
            return product
        init = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[self.inputs :])
        bias = self.param("bias", init, self.features, jnp.float32)
        # In float32, so that the bias's gradient, a sum over all tokens, is in float32.
        return (product.astype(jnp.float32) + bias).astype(self.dtype)


# The cache's keys and values.
Buffers = tuple[
    Float[Array, "layers batch kv_heads length head_dim"], Float[Array, "layers batch kv_heads length head_dim"]
]

Cache = Buffers | Recent | NearRecent | None  # of `Qwen2.__call__`, `decode`, `decode_apart`; or there is none


@flax.struct.dataclass
class _Step:
    """Inputs that all layers of one call share; calls with a cache also write at `slots`, `decode` within `block`."""

    cosine: Float[Array, "batch time half"]
    sine: Float[Array, "batch time half"]
    segment_ids: Int[Array, "batch time"]
    mask: Bool[Array, "batch time length"] | None  # None: the backend makes its own
    slots: Int[Array, "batch time"] | None
    block: Block | NearBlock | None = None


class Attention(nn.Module):
    """Self-attention of one layer; with a cache, over the cached tokens and the new ones."""

    config: Qwen2Config
    dtype: DTypeLike
    backend: AttentionBackend = "xla"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time dim"], cache: Cache, layer: Int[Array, ""], step: _Step
    ) -> tuple[Float[Array, "batch time dim"], Cache]:
        config = self.config
        kv_heads = config.num_key_value_heads
        project = partial(Projection, dtype=self.dtype, bias=config.attention_bias)
        query = project((config.num_attention_heads, config.head_dim), ("embed", "heads", "head_dim"), name="query")(x)
        key = project((kv_heads, config.head_dim), ("embed", "kv_heads", "head_dim"), name="key")(x)
        value = project((kv_heads, config.head_dim), ("embed", "kv_heads", "head_dim"), name="value")(x)
        if config.qk_norm:
            query = RMSNorm(config.rms_norm_eps, name="query_norm")(query)
            key = RMSNorm(config.rms_norm_eps, name="key_norm")(key)
        query, key = (apply_rotary(part, step.cosine, step.sine) for part in (query, key))
        if cache is None:
            mixed = self_attention(self.backend, query, key, value, step.segment_ids, step.mask)
        elif step.block is not None:
            mixed, cache = step.block.attend(query, key, value, cache, layer)
        else:
            key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [batch, kv_heads, time, head_dim]
            # The scan over layers carries the whole cache and writes to it in place; as a scanned input and output it
            # would be copied at every token.
            items, heads = jnp.arange(x.shape[0])[:, None, None], jnp.arange(kv_heads)[:, None]
            place = (layer, items, heads, step.slots[:, None])
            cache = tuple(
                buffer.at[place].set(new.astype(buffer.dtype), mode="drop")
                for buffer, new in zip(cache, (key, value), strict=True)
            )
            mixed = grouped_query_attention(query, cache[0][layer], cache[1][layer], step.mask)
        out = Projection((config.hidden_size,), ("heads", "head_dim", "embed"), self.dtype, inputs=2, name="out")
        return out(mixed), cache


class MLP(nn.Module):
    """SwiGLU feed-forward: down(silu(gate(x)) · up(x))."""

    config: Qwen2Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        wide = partial(Projection, (self.config.intermediate_size,), ("embed", "mlp"), self.dtype)
        narrow = Projection((self.config.hidden_size,), ("mlp", "embed"), self.dtype, name="down")
        return narrow(swiglu(wide(name="gate")(x), wide(name="up")(x)))


class DecoderLayer(nn.Module):
    """Pre-norm layer: attention, then SwiGLU, each with a residual."""

    config: Qwen2Config
    dtype: DTypeLike
    backend: AttentionBackend = "xla"

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "batch time dim"], Cache], layer: Int[Array, ""], step: _Step
    ) -> tuple[tuple[Float[Array, "batch time dim"], Cache], None]:
        x, cache = carry
        x = sharding.constrain(x, "batch", None, None)
        norm = partial(RMSNorm, self.config.rms_norm_eps)
        mixed, cache = Attention(self.config, self.dtype, self.backend, name="attention")(
            norm(name="input_norm")(x), cache, layer, step
        )
        x = x + mixed
        x = x + MLP(self.config, self.dtype, name="mlp")(norm(name="post_attention_norm")(x))
        return (x, cache), None


class Qwen2(nn.Module):
    """Token ids → hidden states → logits. Parameters are float32; `dtype` is the type of the computation.

    Attributes:
      config: sizes.
      dtype: type of the computation.
      unroll: number of layers in one body of the loop over layers. A longer body takes longer to compile, but the
        residuals of its layers are not copied into stacks: training six layers of width 192 on CPUs, all unrolled, took
        15 % less processor time.
      attention: backend of calls without a cache, from `choose_backend`.
      remat: what each layer saves for the gradient: everything ("none"), its inputs alone ("full"), its inputs and the
        result of an attention kernel ("attention"), or these and the result of every product with a kernel ("dots").
    """

    config: Qwen2Config
    dtype: DTypeLike = jnp.float32
    unroll: int = 1
    attention: AttentionBackend = "xla"
    remat: Remat = "none"

    def setup(self):
        config = self.config
        # Parameters are initialized with a single row, which a kernel cannot divide.
        backend = "xla" if self.is_initializing() else self.attention
        layer = DecoderLayer
        if self.remat != "none":
            # A loop over layers keeps XLA from merging the repeated computation with the first, unless it is unrolled.
            layer = nn.remat(DecoderLayer, policy=_REMAT_POLICIES[self.remat], prevent_cse=self.unroll > 1)
        init = nn.initializers.normal(INIT_SCALE)
        self.embed = Embedding(config.vocab_size, config.hidden_size, init, self.dtype)
        self.layers = nn.scan(
            layer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=config.num_hidden_layers,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, self.dtype, backend)
        self.norm = RMSNorm(config.rms_norm_eps)
        if not config.tie_word_embeddings:
            head_init = nn.with_logical_partitioning(init, ("embed", "vocab"))
            self.head = self.param("head", head_init, (config.hidden_size, config.vocab_size), jnp.float32)

    def __call__(
        self,
        input_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"] | None = None,
        segment_ids: Int[Array, "batch time"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "batch time dim"], KVCache | None]:
        """Returns the hidden states after the final norm, and the cache with these tokens added.

        Args:
          input_ids: tokens; padding may hold any valid id.
          positions: rotary positions; the default continues from the cache's lengths: 0, 1, … without a cache.
          segment_ids: segment of each token, which sees only its own segment; 0 is padding. Default: one segment and no
            padding. With a cache: 1 for tokens and 0 for padding, which must come last (right-padded prompts).
          cache: the tokens before these; with None, None is returned for the cache.
        """
        batch, time = input_ids.shape
        slots = jnp.broadcast_to(jnp.arange(time), (batch, time))
        if segment_ids is None:
            segment_ids = jnp.ones((batch, time), jnp.int32)
        if cache is None:
            mask = backend_mask("xla" if self.is_initializing() else self.attention, segment_ids)
        else:
            slots = slots + cache.lengths[:, None]
            mask = jnp.arange(cache.capacity) <= slots[:, :, None]
        cosine, sine = rotary_angles(
            slots if positions is None else positions, self.config.head_dim, self.config.rope_theta
        )
        x = sharding.constrain(self.embed(input_ids), "batch", None, None)
        buffers = None if cache is None else (cache.keys, cache.values)
        layer_indices = jnp.arange(self.config.num_hidden_layers)
        step = _Step(cosine, sine, segment_ids, mask, None if cache is None else slots)
        (x, buffers), _ = self.layers((x, buffers), layer_indices, step)
        if cache is not None:
            added = jnp.sum(segment_ids != 0, axis=1, dtype=jnp.int32)
            cache = KVCache(*buffers, lengths=cache.lengths + added)
        return self.norm(x), cache

    def decode(
        self, embedded: Float[Array, "slots 1 dim"], recent: Recent, block: Block
    ) -> tuple[Float[Array, "slots 1 dim"], Recent]:
        """Returns the hidden states of one more token of each slot, and the recent tokens with it.

        Args:
          embedded: the tokens' embeddings.
          recent: the tokens of the block so far.
          block: the tokens before the block, which are only read, and how many `recent` are.
        """
        layers = jnp.arange(self.config.num_hidden_layers)
        (x, recent), _ = self.layers((embedded.astype(self.dtype), recent), layers, _decode_step(self.config, block))
        return self.norm(x), recent

    def logits(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """Returns the scores of the next token in float32 (the operands are in the computation's type)."""
        if self.config.tie_word_embeddings:
            table = self.embed.embedding
            equation = "...d,vd->...v"
        else:
            table = self.head
            equation = "...d,dv->...v"
        return wide_einsum(equation, hidden.astype(self.dtype), table.astype(self.dtype))

    def output_table(self) -> Float[Array, "vocab dim"]:
        """Returns the float32 parameters by which hidden states are multiplied to give logits."""
        return self.embed.embedding if self.config.tie_word_embeddings else self.head.T


def decode_apart(
    model: Qwen2,
    params: Any,
    embedded: Float[Array, "slots 1 dim"],
    recent: tuple[NearRecent, ...],
    blocks: Sequence[NearBlock],
) -> tuple[Float[Array, "slots 1 dim"], tuple[NearRecent, ...]]:
    """Returns what `Qwen2.decode` does, by parameters whose layers lie apart.

    Args:
      model: the decoder.
      params: with a tuple of layers.
      embedded: the tokens' embeddings.
      recent: the tokens of the block so far, of each layer.
      blocks: the tokens before the block, of each layer, and how many `recent` are.
    """
    x, after, layer = embedded.astype(model.dtype), [], DecoderLayer(model.config, model.dtype)
    for number, (own, tokens, block) in enumerate(zip(params["layers"], recent, blocks, strict=True)):
        step = _decode_step(model.config, block)
        (x, tokens), _ = layer.apply({"params": own}, (x, tokens), jnp.int32(number), step)
        after.append(tokens)
    return RMSNorm(model.config.rms_norm_eps).apply({"params": params["norm"]}, x), tuple(after)


def _decode_step(config: Qwen2Config, block: Block | NearBlock) -> _Step:
    positions = (block.cache.lengths + block.offset)[:, None]
    cosine, sine = rotary_angles(positions, config.head_dim, config.rope_theta)
    segments = jnp.ones((positions.shape[0], 1), jnp.int32)
    return _Step(cosine, sine, segments, mask=None, slots=None, block=block)
