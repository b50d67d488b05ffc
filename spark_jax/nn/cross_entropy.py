"""Cross-entropy over a large vocabulary in chunks of tokens, so that logits [tokens, vocab] never exist at once.

The loss is linear in the tokens' weights, so one pass over the chunks computes both the loss and, up to one factor, its
gradient: nothing is computed twice, and the only array of the vocabulary's size that is kept is the table's gradient.
Tokens of weight 0 are sorted to the end, and chunks that hold only such tokens are skipped: prompts and padding cost
nothing. Each device works on its own tokens; it gathers the table once before the loop and reduces the table's
gradient once after it, where a loop that XLA partitions would do both for every chunk.
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spark_jax import sharding

HIDDEN_AXES, TABLE_AXES, TOKEN_AXES = ("batch", None, None), ("vocab", "embed"), ("batch", None)


@flax.struct.dataclass
class TokenScores:
    """Loss and rank of every token, 0 for tokens of weight 0; no gradient flows through them."""

    losses: Float[Array, "batch time"]  # cross-entropy in nats
    ranks: Int[Array, "batch time"]  # number of tokens that are more likely than the target


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked_cross_entropy(
    hidden: Float[Array, "batch time dim"],
    table: Float[Array, "vocab dim"],
    targets: Int[Array, "batch time"],
    weights: Float[Array, "batch time"],
    chunk: int,
) -> tuple[Float[Array, ""], TokenScores]:
    """Returns the weighted sum of the tokens' cross-entropies in float32, and the scores of every token.

    Args:
      hidden: hidden states in the type of the computation; products in this type give float32.
      table: output embeddings; the logits are hidden · table.
      weights: weight of each token's loss in the sum; they get no gradient.
      chunk: number of tokens of a device whose logits exist at a time.
    """
    loss, scores, _ = _pass(hidden, table, targets, weights, chunk, with_gradients=False)
    return loss, scores


Gradients = tuple[Float[Array, "batch time dim"], Float[Array, "vocab dim"]]


def _forward(
    hidden: Array, table: Array, targets: Array, weights: Array, chunk: int
) -> tuple[tuple[Float[Array, ""], TokenScores], Gradients]:
    loss, scores, gradients = _pass(hidden, table, targets, weights, chunk, with_gradients=True)
    return (loss, scores), gradients


def _backward(
    chunk: int, gradients: Gradients, cotangents: tuple[Float[Array, ""], TokenScores]
) -> tuple[Array, Array, None, None]:
    factor = cotangents[0]
    d_hidden, d_table = gradients
    return (d_hidden * factor).astype(d_hidden.dtype), d_table * factor, None, None


chunked_cross_entropy.defvjp(_forward, _backward)


def _pass(
    hidden: Array, table: Array, targets: Array, weights: Array, chunk: int, with_gradients: bool
) -> tuple[Array, TokenScores, tuple[Array, Array] | None]:
    """Returns the loss, each token's scores, and the loss's gradients with respect to hidden and table, or None."""
    tokens = (TOKEN_AXES, TOKEN_AXES)
    outputs = ((), *tokens, HIDDEN_AXES, TABLE_AXES) if with_gradients else ((), *tokens)
    run = sharding.per_device(
        partial(_device_pass, chunk=chunk, with_gradients=with_gradients), (HIDDEN_AXES, TABLE_AXES, *tokens), outputs
    )
    loss, losses, ranks, *gradients = run(hidden, table, targets, weights)
    return loss, TokenScores(losses, ranks), tuple(gradients) or None


def chosen_by_mask(logits: Float[Array, "tokens vocab"], index: Int[Array, " tokens"]) -> Float[Array, " tokens"]:
    """Returns each token's logit at its index; 0 where that is in another part of the vocabulary."""
    return jnp.sum(jnp.where(jnp.arange(logits.shape[1]) == index[:, None], logits, 0.0), axis=-1)


def chosen_by_gather(logits: Float[Array, "tokens vocab"], index: Int[Array, " tokens"]) -> Float[Array, " tokens"]:
    """Returns what `chosen_by_mask` does, without reading all logits."""
    inside = (index >= 0) & (index < logits.shape[1])
    found = jnp.take_along_axis(logits, jnp.where(inside, index, 0)[:, None], axis=1)[:, 0]
    return jnp.where(inside, found, 0.0)


Sums = tuple[Float[Array, " tokens"], Float[Array, " tokens"], Int[Array, " tokens"]]


def plain_sums(logits: Float[Array, "tokens vocab"], chosen: Float[Array, " tokens"]) -> Sums:
    """Returns each token's highest logit, the sum of exp(logit - highest), and how many logits are above `chosen`."""
    highest = jnp.max(logits, axis=-1)
    total = jnp.sum(jnp.exp(logits - highest[:, None]), axis=-1)
    return highest, total, jnp.sum(logits > chosen[:, None], axis=-1, dtype=jnp.int32)


def sums_in_one_pass(logits: Float[Array, "tokens vocab"], chosen: Float[Array, " tokens"]) -> Sums:
    """Returns `plain_sums` by one reduction, which takes a new highest logit into account as it is met."""

    def merge(one: tuple[Array, ...], other: tuple[Array, ...]) -> tuple[Array, ...]:
        highest = jnp.maximum(one[0], other[0])
        totals = (part[1] * jnp.exp(part[0] - highest) for part in (one, other))
        return highest, sum(totals), one[2] + other[2]

    above = (logits > chosen[:, None]).astype(jnp.int32)
    start = (jnp.float32(jnp.finfo(jnp.float32).min), jnp.float32(0), jnp.int32(0))
    return jax.lax.reduce((logits, jnp.ones_like(logits), above), start, merge, (1,))


def _device_pass(
    hidden: Float[Array, "rows time dim"],
    table: Float[Array, "part_vocab part_dim"],
    targets: Int[Array, "rows time"],
    weights: Float[Array, "rows time"],
    chunk: int,
    with_gradients: bool,
) -> tuple[Array, ...]:
    """Scores one device's tokens against its part of the vocabulary."""
    # Mesh axes of the collectives inside `per_device`; empty without a mesh, where there is nothing to sum over.
    batch_axes, vocab_axes, embed_axes = (sharding.device_axes(name) for name in ("batch", "vocab", "embed"))
    rows, time, dim = hidden.shape
    whole = table.astype(hidden.dtype)
    if embed_axes:
        whole = jax.lax.all_gather(whole, embed_axes, axis=1, tiled=True)
    first = jax.lax.axis_index(vocab_axes) * table.shape[0] if vocab_axes else 0
    ids = first + jnp.arange(table.shape[0])

    def over_vocabulary(x: Array) -> Array:
        return jax.lax.psum(x, vocab_axes) if vocab_axes else x

    def one_chunk(d_table: Array, part: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, ...]]:
        x, target, weight = part
        logits = jnp.einsum("nd,vd->nv", x, whole, preferred_element_type=jnp.float32)
        # GPUs read the logits, which no cache holds, once; elsewhere simple sums are faster.
        choose = partial(jax.lax.platform_dependent, logits)
        chosen = over_vocabulary(choose(target - first, cuda=chosen_by_gather, default=chosen_by_mask))
        own_highest, total, rank = choose(chosen, cuda=sums_in_one_pass, default=plain_sums)
        highest = jax.lax.pmax(own_highest, vocab_axes) if vocab_axes else own_highest
        log_total = highest + jnp.log(over_vocabulary(total * jnp.exp(own_highest - highest)))
        rank = over_vocabulary(rank)
        figures = (jnp.where(weight == 0, 0.0, log_total - chosen), jnp.where(weight == 0, 0, rank))
        if not with_gradients:
            return d_table, figures
        d_logits = weight[:, None] * (jnp.exp(logits - log_total[:, None]) - (ids == target[:, None]))
        d_logits = d_logits.astype(x.dtype)
        d_table = d_table + jnp.einsum("nv,nd->vd", d_logits, x, preferred_element_type=jnp.float32)
        d_x = over_vocabulary(jnp.einsum("nv,vd->nd", d_logits, whole, preferred_element_type=jnp.float32))
        return d_table, (*figures, d_x.astype(x.dtype))

    def no_chunk(d_table: Array, part: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, ...]]:
        _, shapes = jax.eval_shape(one_chunk, d_table, part)
        return d_table, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    count = rows * time
    chunk = min(chunk, count)
    flat = (hidden.reshape(count, dim), targets.reshape(count), weights.astype(jnp.float32).reshape(count))
    order = jnp.argsort(flat[2] == 0)  # stable: weighted tokens in their order, then the others
    parts = tuple(
        jnp.pad(x[order], ((0, -count % chunk), *((0, 0),) * (x.ndim - 1))).reshape(-1, chunk, *x.shape[1:])
        for x in flat
    )
    d_table = jnp.zeros(whole.shape if with_gradients else (0, 0), jnp.float32)
    d_table, figures = jax.lax.scan(
        lambda total, part: jax.lax.cond(jnp.any(part[2] != 0), one_chunk, no_chunk, total, part), d_table, parts
    )
    place = jnp.argsort(order)
    figures = [x.reshape(-1, *x.shape[2:])[place].reshape(rows, time, *x.shape[2:]) for x in figures]
    loss = jnp.sum(figures[0] * weights)
    if batch_axes:
        loss = jax.lax.psum(loss, batch_axes)
    if not with_gradients:
        return loss, *figures
    # Sum over the devices that hold other tokens; devices that divide the table's columns each keep their own columns.
    if embed_axes:
        # Scatter over a leading axis: XLA reduces columns that are no multiple of its tiles whole, on every device.
        columns = d_table.reshape(d_table.shape[0], -1, table.shape[1]).swapaxes(0, 1)
        d_table = jax.lax.psum_scatter(columns, embed_axes)
    others = tuple(axis for axis in batch_axes if axis not in embed_axes)
    if others:
        d_table = jax.lax.psum(d_table, others)
    return loss, *figures, d_table
