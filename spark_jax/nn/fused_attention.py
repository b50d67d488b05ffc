"""Causal attention over packed rows as one kernel without scores [time, time]: splash on TPUs, cuDNN on GPUs.

All treat segments as `attention.causal_mask` does: a token of segment 0 (padding) sees itself and the padding before
it, so that every query sees some key. Under a mesh each device computes its own rows and heads.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spark_jax import sharding

QUERY_AXES = ("batch", None, "heads", None)
KEY_AXES = ("batch", None, "kv_heads", None)
RESIDUALS = "attention"  # checkpoint name of the residuals that the splash kernel keeps for its gradient
_CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"  # JAX's primitive of cuDNN's forward pass
TOKENS_A_SEGMENT = 32  # of a row, at least, on average: what `packed_cudnn_attention` has room for
BLOCKS = (512, 256, 128)  # sizes of blocks of queries and keys, multiples of a TPU's 128 lanes


def splash_attention(
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch time kv_heads dim"],
    value: Float[Array, "batch time kv_heads dim"],
    segment_ids: Int[Array, "batch time"],
    interpret: bool = False,
) -> Float[Array, "batch time heads dim"]:
    """Computes causal attention within segments by JAX's splash kernels (Pallas, TPU) for any length and head size.

    Args:
      interpret: whether to interpret the kernels, which works on any backend, for tests.
    """
    # Imported here because Pallas takes half a second to import and the other backends do not need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

    def attend(query: Array, key: Array, value: Array, segment_ids: Array) -> Array:
        time, heads, dim = query.shape[1:]
        block = _block(time)
        padding = -time % block
        # The kernel does not scale. For head sizes that are a power of four the scale is exact in bfloat16, too.
        query = (query.astype(jnp.float32) * dim**-0.5).astype(query.dtype)
        query, key, value = (
            jnp.pad(part.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0))) for part in (query, key, value)
        )
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
        causal = splash_mask.CausalMask((time + padding, time + padding))
        kernel = splash.make_splash_mha_single_device(
            splash_mask.MultiHeadMask([causal] * heads),
            block_sizes=splash.BlockSizes(
                block_q=block,
                block_kv=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_q_dq=block,
                block_kv_dq=block,
            ),
            residual_checkpoint_name=RESIDUALS,
            interpret=interpret,
        )
        mixed = jax.vmap(kernel)(query, key, value, segment_ids=splash.SegmentIds(segment_ids, segment_ids))
        return mixed[:, :, :time].swapaxes(1, 2)

    inputs = (QUERY_AXES, KEY_AXES, KEY_AXES, ("batch", None))
    return sharding.per_device(attend, inputs, QUERY_AXES)(query, key, value, segment_ids)


def _block(time: int) -> int:
    """Returns the largest block that pads the row by at most an eighth, else the smallest block."""
    return next((block for block in BLOCKS if -time % block <= time // 8), BLOCKS[-1])


def cudnn_attention(
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch time kv_heads dim"],
    value: Float[Array, "batch time kv_heads dim"],
    same_segment: Bool[Array, "batch time time"],
) -> Float[Array, "batch time heads dim"]:
    """Computes causal attention within segments by cuDNN's flash attention (GPUs since Ampere; bfloat16 or float16).

    The segments reach cuDNN as an additive bias, which all layers share. cuDNN's packed layout would skip pairs of
    different segments, but it needs Hopper, a bound on the number of segments in a row, and a private API of JAX.

    Args:
      same_segment: the result of `segment_mask`; rows of odd length are padded by one, as cuDNN's gradient requires.
    """

    def attend(query: Array, key: Array, value: Array, same_segment: Array) -> Array:
        time = query.shape[1]
        odd = time % 2
        query, key, value = (jnp.pad(part, ((0, 0), (0, odd), (0, 0), (0, 0))) for part in (query, key, value))
        # The padding sees itself, and by causality no token sees it.
        mask = jnp.pad(same_segment, ((0, 0), (0, odd), (0, odd)), constant_values=True)[:, None]
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True, implementation="cudnn")
        return mixed[:, :time]

    inputs = (QUERY_AXES, KEY_AXES, KEY_AXES, ("batch", None, None))
    return sharding.per_device(attend, inputs, QUERY_AXES)(query, key, value, same_segment)


def packed_cudnn_attention(
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch time kv_heads dim"],
    value: Float[Array, "batch time kv_heads dim"],
    segment_ids: Int[Array, "batch time"],
) -> Float[Array, "batch time heads dim"]:
    """Computes what `cudnn_attention` does, by cuDNN's layout for packed rows (GPUs since Hopper; JAX from 0.11.2 on).

    There is no bias to read, and pairs of different segments are not computed. A row has room for a segment for every
    `TOKENS_A_SEGMENT` of its tokens, padding included; what a row with more gives is NaN. The layout is in no public
    API of JAX.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    def attend(query: Array, key: Array, value: Array, segment_ids: Array) -> Array:
        time = segment_ids.shape[1]
        odd = time % 2  # which cuDNN's gradient does not take
        query, key, value = (jnp.pad(part, ((0, 0), (0, odd), (0, 0), (0, 0))) for part in (query, key, value))
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, odd)), constant_values=-1)
        most = -(-time // TOKENS_A_SEGMENT) + 1
        before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-2)
        number = jnp.cumsum(segment_ids != before, axis=1) - 1  # padding is a segment, too: every token is in one
        lengths = jnp.sum(number[:, :, None] == jnp.arange(most), axis=1, dtype=jnp.int32)
        starts = jnp.cumsum(lengths, axis=1, dtype=jnp.int32) - lengths
        lengths, starts = (jnp.where(lengths > 0, part, -1) for part in (lengths, starts))
        offsets = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
        query = jnp.where(number[:, -1, None, None, None] < most, query, jnp.nan)
        mixed = cudnn.dot_product_attention(
            query,
            key,
            value,
            q_seqlen=lengths,
            kv_seqlen=lengths,
            q_offsets=offsets,
            kv_offsets=offsets,
            scale=query.shape[-1] ** -0.5,
            mask_type=cudnn.MaskType.PADDING_CAUSAL,
        )
        return mixed[:, :time]

    inputs = (QUERY_AXES, KEY_AXES, KEY_AXES, ("batch", None))
    return sharding.per_device(attend, inputs, QUERY_AXES)(query, key, value, segment_ids)


def keep_attention(primitive: Any, *arguments: Any, **parameters: Any) -> Any:
    """Decides as a policy of `jax.checkpoint` that the results of attention kernels are kept, and nothing else."""
    if primitive.name == _CUDNN_FORWARD:
        return True
    return jax.checkpoint_policies.save_only_these_names(RESIDUALS)(primitive, *arguments, **parameters)


def segment_mask(segment_ids: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """Returns True where a query (axis 1) and a key (axis 2) belong to the same segment."""
    return segment_ids[:, :, None] == segment_ids[:, None, :]
