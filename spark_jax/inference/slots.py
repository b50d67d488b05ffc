"""Two programs over the slots of continuous batching: `admit` reads prompts into slots, `decode_block` goes on in all.

What a slot chooses depends on its own tokens, seed, values and number of steps alone: the draw of a step uses the key
of the slot's seed folded with the slot's own count. Tokens are rows of the small head, which the grammar can allow.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from spark_jax.inference.sampling import Sampling, choose, draw_noise
from spark_jax.nn.linear import wide_einsum
from spark_jax.qwen2 import decoding, slot_cache
from spark_jax.qwen2.cache import init_cache
from spark_jax.qwen2.model import Qwen2
from spark_jax.qwen2.slot_cache import SlotCache
from spark_jax.text.grammar import Grammar

RUNNING, ENDED, CUT_OFF = range(3)  # flags of a block: an answer goes on, came to its end, reached its limit


@flax.struct.dataclass
class Head:
    """The rows of the vocabulary that the grammar can allow.

    Attributes:
      embedding: of these tokens as inputs.
      output: by which hidden states are multiplied; the same array where the model ties them.
    """

    embedding: Float[Array, "rows dim"]
    output: Float[Array, "rows dim"]


@flax.struct.dataclass
class Answers:
    """What each slot answers to, and how far it is.

    Attributes:
      token: the newest token, which is not in the cache yet.
      stage: where in the grammar the slot is.
      step: how many tokens it chose.
      limit: how many it may.
      seed: of its draws.
      sampling: how its tokens are chosen.
      fresh: no block has given out its first token yet.
    """

    token: Int[Array, " slots"]
    stage: Int[Array, " slots"]
    step: Int[Array, " slots"]
    limit: Int[Array, " slots"]
    seed: UInt32[Array, " slots"]
    sampling: Sampling
    fresh: Bool[Array, " slots"]


@flax.struct.dataclass
class SlotState:
    """All slots; donated from call to call."""

    cache: SlotCache
    answers: Answers


@flax.struct.dataclass
class Prompts:
    """Right-padded prompts for `admit`, with where they go and what they ask for."""

    ids: Int[Array, "rows time"]
    lengths: Int[Array, " rows"]
    slots: Int[Array, " rows"]  # of rows without a prompt: the number of slots
    stage: Int[Array, " rows"]
    limit: Int[Array, " rows"]
    seed: UInt32[Array, " rows"]
    sampling: Sampling


def init_state(model: Qwen2, slots: int, capacity: int, done: int, near_block: int = 0) -> SlotState:
    """Returns empty slots; `done` is the stage in which nothing is chosen. See `slot_cache.init_slots`."""
    nothing = jnp.zeros(slots, jnp.int32)
    ones = jnp.ones(slots, jnp.float32)
    answers = Answers(
        token=nothing,
        stage=jnp.full(slots, done, jnp.int32),
        step=nothing,
        limit=nothing,
        seed=jnp.zeros(slots, jnp.uint32),
        sampling=Sampling(ones, ones, jnp.ones(slots, jnp.int32), jnp.zeros(slots, bool)),
        fresh=jnp.zeros(slots, bool),
    )
    return SlotState(slot_cache.init_slots(model.config, slots, capacity, model.dtype, near_block), answers)


def _exact(program: Callable[..., Any]) -> Callable[..., Any]:
    """Makes float32 products of a program float32: by default they are TF32 on GPUs, and bfloat16 on TPUs."""

    @functools.wraps(program)
    def traced(model: Qwen2, *arguments: Any, **options: Any) -> Any:
        with jax.default_matmul_precision("highest" if jnp.dtype(model.dtype) == jnp.float32 else "default"):
            return program(model, *arguments, **options)

    return traced


@_exact
def admit(
    model: Qwen2, max_top_k: int, params: Any, head: Head, grammar: Grammar, state: SlotState, prompts: Prompts
) -> SlotState:
    """Reads prompts, chooses the first token of each, and puts them into their slots."""
    rows, time = prompts.ids.shape
    valid = jnp.arange(time) < prompts.lengths[:, None]
    empty = init_cache(model.config, rows, time, model.dtype)
    hidden, cache = model.apply({"params": params}, prompts.ids, segment_ids=valid.astype(jnp.int32), cache=empty)
    last = jnp.take_along_axis(hidden, prompts.lengths[:, None, None] - 1, axis=1)[:, 0]
    nothing = jnp.zeros(rows, jnp.int32)
    fresh = jnp.ones(rows, bool)
    start = Answers(nothing, prompts.stage, nothing, prompts.limit, prompts.seed, prompts.sampling, fresh)
    new, _ = _take(start, last, head, grammar, draw_noise(prompts.seed, nothing, max_top_k), model.dtype)
    answers = jax.tree.map(lambda all_, some: all_.at[prompts.slots].set(some, mode="drop"), state.answers, new)
    into = slot_cache.insert(state.cache, prompts.slots, cache.keys, cache.values, prompts.lengths)
    return SlotState(into, answers)


@_exact
def decode_block(
    model: Qwen2,
    max_top_k: int,
    length: int,
    window: int,
    params: Any,
    head: Head,
    grammar: Grammar,
    state: SlotState,
    apart: bool = False,
) -> tuple[SlotState, Int[Array, "slots codes"], Int[Array, " slots"]]:
    """Chooses `length` more tokens in every slot that is not finished.

    Args:
      model, params, head, grammar: the model.
      max_top_k: the largest top-k of a slot.
      length: steps of the block.
      window: places of the cache that are read.
      state: the slots.
      apart: see `decoding.begin`; for GPUs.

    Returns:
      The slots, the tokens that were chosen (-1: none; the first column is for those of `admit`), and a flag for each
      slot: `RUNNING`, `ENDED` or `CUT_OFF`.
    """
    slots = state.answers.token.shape[0]
    codes = jnp.full((slots, length + 1), -1, jnp.int32)
    codes = codes.at[:, 0].set(jnp.where(state.answers.fresh, state.answers.token, -1))
    answers = state.answers.replace(fresh=jnp.zeros(slots, bool))
    added = jnp.zeros(slots, jnp.int32)
    longest = jnp.max(jnp.where(_active(answers, grammar), state.cache.lengths, 0))
    tokens, decode = decoding.begin(model, params, state.cache, length, longest, window, apart)
    # Of all steps at once: a slot that goes on has made one step more at each.
    noise = draw_noise(answers.seed, answers.step + jnp.arange(length)[:, None], max_top_k)

    def one_token(offset: Int[Array, ""], carry: tuple) -> tuple:
        answers, tokens, codes, added = carry
        hidden, tokens = decode(head.embedding[answers.token][:, None], tokens, offset)
        answers, active = _take(answers, hidden[:, 0], head, grammar, noise[offset], model.dtype)
        newest = jnp.where(active, answers.token, -1)
        codes = jax.lax.dynamic_update_slice_in_dim(codes, newest[:, None], offset + 1, axis=1)
        return answers, tokens, codes, added + active

    answers, tokens, codes, added = jax.lax.fori_loop(0, length, one_token, (answers, tokens, codes, added))
    flags = jnp.where(answers.step < answers.limit, RUNNING, CUT_OFF)
    flags = jnp.where(answers.stage == grammar.index("done"), ENDED, flags)
    return SlotState(slot_cache.merge(state.cache, tokens, added), answers), codes, flags


def _take(
    answers: Answers,
    hidden: Float[Array, "slots dim"],
    head: Head,
    grammar: Grammar,
    noise: Float[Array, "slots top"],
    dtype: Any,
) -> tuple[Answers, Bool[Array, " slots"]]:
    """Chooses a token for each slot among those that its stage allows; returns also which slots went on."""
    logits = wide_einsum("sd,vd->sv", hidden.astype(dtype), head.output.astype(dtype))
    active = _active(answers, grammar)
    allowed = jnp.where(grammar.mask(answers.stage), logits, -jnp.inf)
    token = choose(answers.sampling, allowed, noise)
    moved = answers.replace(
        token=jnp.where(active, token, answers.token),
        stage=jnp.where(active, grammar.advance(answers.stage, token), answers.stage),
        step=answers.step + active,
    )
    return moved, active


def _active(answers: Answers, grammar: Grammar) -> Bool[Array, " slots"]:
    return (answers.stage != grammar.index("done")) & (answers.step < answers.limit)
