"""How the next token is chosen from its scores: greedily, or temperature → top-k → top-p → draw."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32


@flax.struct.dataclass
class Sampling:
    """How the tokens of each row are chosen; other values compile nothing.

    Attributes:
      temperature: the scores are divided by it; above 0.
      top_p: of the `top_k` likeliest, the fewest likeliest whose probabilities reach this sum stay (at least one).
      top_k: only this many likeliest tokens stay.
      greedy: the likeliest token is taken, of equals the one with the lowest id; the other values play no part.
    """

    temperature: Float[Array, " rows"]
    top_p: Float[Array, " rows"]
    top_k: Int[Array, " rows"]
    greedy: Bool[Array, " rows"]


def warp(
    sampling: Sampling, logits: Float[Array, "rows vocab"], max_top_k: int
) -> tuple[Float[Array, "rows top"], Int[Array, "rows top"]]:
    """Returns the likeliest tokens of each row, best first: log-probabilities up to a constant (-inf: dropped) and ids.

    In the order and with the edges of transformers' warpers, on float32. One difference: of tokens that tie
    for the last place exactly `top_k` stay.

    Args:
      sampling: of each row.
      logits: of each row.
      max_top_k: the largest top-k of a row.
    """
    # Everything after top-k works on `max_top_k` numbers: sorting a whole vocabulary at every token would cost more
    # than the model. Dividing by a positive temperature keeps the order, so top-k may come first.
    count = min(max_top_k, logits.shape[-1])
    scores, ids = jax.lax.platform_dependent(
        logits, cuda=partial(top_k_by_groups, count=count), default=partial(_top_k, count=count)
    )
    scores = scores / sampling.temperature[:, None]
    scores = jnp.where(jnp.arange(scores.shape[-1]) < sampling.top_k[:, None], scores, -jnp.inf)
    probabilities = jax.nn.softmax(scores, axis=-1)
    tail = jnp.cumsum(probabilities[:, ::-1], axis=-1)[:, ::-1]  # of a token and all less likely ones
    kept = (tail > 1 - sampling.top_p[:, None]).at[:, 0].set(True)
    return jnp.where(kept, scores, -jnp.inf), ids


def _top_k(values: Float[Array, "rows columns"], count: int) -> tuple[Array, Array]:
    scores, ids = jax.lax.top_k(values, count)
    return scores, ids


def top_k_by_groups(
    values: Float[Array, "rows columns"], count: int, group: int = 16
) -> tuple[Float[Array, "rows top"], Int[Array, "rows top"]]:
    """Returns what `jax.lax.top_k` does, of equals the ones with the lowest ids, from shorter sorts.

    XLA's GPU backend sorts whole rows. What is among the `count` largest lies in one of the `count` groups of neighbors
    with the largest maxima; that holds among equals too, since both choices prefer the lowest.

    Args:
      values: any numbers but NaN.
      count: at most the number of columns.
      group: neighbors of a group.
    """
    rows, columns = values.shape
    if columns <= 2 * count * group:
        return _top_k(values, count)
    # What fills up the last group comes after all else, even among equals.
    grouped = jnp.pad(values, ((0, 0), (0, -columns % group)), constant_values=-jnp.inf).reshape(rows, -1, group)
    chosen = jnp.sort(_top_k(jnp.max(grouped, axis=-1), count)[1], axis=-1)  # so that ids ascend
    scores, places = _top_k(jnp.take_along_axis(grouped, chosen[..., None], axis=1).reshape(rows, -1), count)
    return scores, jnp.take_along_axis(chosen, places // group, axis=-1) * group + places % group


def draw_noise(
    seeds: UInt32[Array, " rows"], steps: Int[Array, "*steps rows"], max_top_k: int
) -> Float[Array, "*steps rows top"]:
    """Returns what decides the draw of a request with this seed at this step: noise for each rank of its candidates.

    That of a rank does not depend on `max_top_k`, the largest top-k.
    """

    def of_row(seed: Array, step: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), step), (max_top_k,))

    return jnp.vectorize(of_row, signature="(),()->(k)")(seeds, steps)


def choose(
    sampling: Sampling, logits: Float[Array, "rows vocab"], noise: Float[Array, "rows top"]
) -> Int[Array, " rows"]:
    """Chooses the next token of each row, by `draw_noise` of the largest top-k; scores of -inf are never chosen."""
    scores, ids = warp(sampling, logits, noise.shape[-1])
    drawn = jnp.argmax(scores + noise[:, : scores.shape[-1]], axis=-1)
    chosen = jnp.where(sampling.greedy, 0, drawn)
    return jnp.take_along_axis(ids, chosen[:, None], axis=-1)[:, 0]
