"""How the next token is chosen from its scores: greedily, or temperature → top-k → top-p → draw."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


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
    scores, ids = jax.lax.top_k(logits, min(max_top_k, logits.shape[-1]))
    scores = scores / sampling.temperature[:, None]
    scores = jnp.where(jnp.arange(scores.shape[-1]) < sampling.top_k[:, None], scores, -jnp.inf)
    probabilities = jax.nn.softmax(scores, axis=-1)
    tail = jnp.cumsum(probabilities[:, ::-1], axis=-1)[:, ::-1]  # of a token and all less likely ones
    kept = (tail > 1 - sampling.top_p[:, None]).at[:, 0].set(True)
    return jnp.where(kept, scores, -jnp.inf), ids


def choose(
    sampling: Sampling, logits: Float[Array, "rows vocab"], keys: Key[Array, " rows"], max_top_k: int
) -> Int[Array, " rows"]:
    """Chooses the next token of each row. Scores of -inf are never chosen; each row draws with its own key.

    The noise of a candidate depends on its rank alone, so that a draw does not depend on `max_top_k`.
    """
    scores, ids = warp(sampling, logits, max_top_k)
    drawn = jax.vmap(jax.random.categorical)(keys, scores)
    chosen = jnp.where(sampling.greedy, 0, drawn)
    return jnp.take_along_axis(ids, chosen[:, None], axis=-1)[:, 0]
