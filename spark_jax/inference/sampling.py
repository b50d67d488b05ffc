"""How the next token is chosen from its scores: greedily, or temperature → top-k → top-p → draw."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@flax.struct.dataclass
class Greedy:
    """Takes the likeliest token; of equals the one with the lowest id."""


@flax.struct.dataclass
class Sampling:
    """Draws from the likeliest tokens; the defaults are the release's.

    Attributes:
      temperature: the scores are divided by it; above 0. Changing it, or `top_p`, does not compile anew.
      top_k: only this many likeliest tokens stay. Static: another value compiles another program.
      top_p: of these, the fewest likeliest whose probabilities reach this sum stay (at least one).
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = flax.struct.field(pytree_node=False, default=50)


def warp(
    logits: Float[Array, "batch vocab"], sampling: Sampling
) -> tuple[Float[Array, "batch top"], Int[Array, "batch top"]]:
    """Returns the `top_k` likeliest tokens, best first: log-probabilities up to a constant (-inf: dropped), and ids.

    In the order and with the edges of transformers' warpers, on float32. One difference: of tokens that tie
    for the last place exactly `top_k` stay.
    """
    # Everything after top-k works on `top_k` numbers: sorting a whole vocabulary at every token would cost
    # more than the model. Dividing by a positive temperature keeps the order, so top-k may come first.
    scores, ids = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))
    scores = scores / sampling.temperature
    probabilities = jax.nn.softmax(scores, axis=-1)
    tail = jnp.cumsum(probabilities[:, ::-1], axis=-1)[:, ::-1]  # of a token and all less likely ones
    kept = (tail > 1 - sampling.top_p).at[:, 0].set(True)
    return jnp.where(kept, scores, -jnp.inf), ids


def choose(
    method: Greedy | Sampling, logits: Float[Array, "batch vocab"], keys: Key[Array, " batch"]
) -> Int[Array, " batch"]:
    """Chooses the next token of each item. Scores of -inf are never chosen; each item draws with its own key."""
    if isinstance(method, Greedy):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scores, ids = warp(logits, method)
    drawn = jax.vmap(jax.random.categorical)(keys, scores)
    return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0]


@flax.struct.dataclass
class RowSampling:
    """How the tokens of each row are chosen, as `Greedy` and `Sampling` say for all."""

    temperature: Float[Array, " rows"]
    top_p: Float[Array, " rows"]
    top_k: Int[Array, " rows"]
    greedy: Bool[Array, " rows"]


def choose_rows(
    sampling: RowSampling, logits: Float[Array, "rows vocab"], keys: Key[Array, " rows"], max_top_k: int
) -> Int[Array, " rows"]:
    """Chooses the next token of each row by the row's own values, as `choose` does; `max_top_k` is the largest top-k.

    The draws are those of `choose`, because the noise of a candidate depends on its rank alone.
    """
    scores, ids = jax.lax.top_k(logits, min(max_top_k, logits.shape[-1]))
    scores = scores / sampling.temperature[:, None]
    scores = jnp.where(jnp.arange(scores.shape[-1]) < sampling.top_k[:, None], scores, -jnp.inf)
    probabilities = jax.nn.softmax(scores, axis=-1)
    tail = jnp.cumsum(probabilities[:, ::-1], axis=-1)[:, ::-1]
    kept = (tail > 1 - sampling.top_p[:, None]).at[:, 0].set(True)
    drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(kept, scores, -jnp.inf))
    chosen = jnp.where(sampling.greedy, 0, drawn)
    return jnp.take_along_axis(ids, chosen[:, None], axis=-1)[:, 0]
