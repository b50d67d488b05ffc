"""Generation of speech tokens: two compiled programs, prefill and decode, over explicit state.

Shapes come in buckets: prompts are padded to a bucket, and room for new tokens grows from one bucket to the
next while a batch is still speaking. So a short answer never pays for the longest one, and the limit on new
tokens compiles nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key

from spark_jax.errors import SparkError
from spark_jax.inference import answers, placement
from spark_jax.inference.answers import Generation
from spark_jax.inference.buckets import doubling, lengths_up_to
from spark_jax.inference.sampling import Greedy, Sampling, choose
from spark_jax.qwen2.cache import KVCache, init_cache
from spark_jax.qwen2.model import Qwen2
from spark_jax.sharding import batch_sharding, replicated, spec, under_mesh
from spark_jax.text.grammar import Grammar, build_grammar
from spark_jax.text.prompt import Prompt
from spark_jax.text.tokenizer import SparkTokenizer

MAX_PROMPT_TOKENS = 4096  # the scores of a prompt's attention grow with the square of its length
FIRST_ROOM = 256  # new tokens that there is room for at first


@flax.struct.dataclass
class DecodeState:
    """A batch in the middle of decoding.

    Attributes:
      cache: keys and values of the prompts and of the tokens chosen so far, but the last.
      tokens: the tokens chosen so far, in the first `step` columns.
      stage: where in the grammar each item is.
      limits: the most tokens that each item may take.
      keys: one per request; the draw at step i uses the key folded with i, so it does not depend on buckets.
      step: how many tokens were chosen.
    """

    cache: KVCache
    tokens: Int[Array, "batch output"]
    stage: Int[Array, " batch"]
    limits: Int[Array, " batch"]
    keys: Key[Array, " batch"]
    step: Int[Array, ""]


def prefill(
    model: Qwen2,
    params: Any,
    ids: Int[Array, "batch prompt"],
    lengths: Int[Array, " batch"],
    stage: Int[Array, " batch"],
    limits: Int[Array, " batch"],
    keys: Key[Array, " batch"],
    grammar: Grammar,
    method: Greedy | Sampling,
    output_length: int,
) -> DecodeState:
    """Reads right-padded prompts and chooses the first token; there is room for `output_length` tokens."""
    batch, prompt_length = ids.shape
    valid = jnp.arange(prompt_length) < lengths[:, None]
    empty = init_cache(model.config, batch, prompt_length, model.dtype)
    hidden, cache = model.apply({"params": params}, ids, segment_ids=valid.astype(jnp.int32), cache=empty)
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    tokens = jnp.broadcast_to(grammar.end_id, (batch, output_length))
    state = DecodeState(cache.extend(output_length), tokens, stage, limits, keys, jnp.int32(0))
    return _take(state, model.apply({"params": params}, last, method=Qwen2.logits), grammar, method)


def decode(model: Qwen2, params: Any, state: DecodeState, grammar: Grammar, method: Greedy | Sampling) -> DecodeState:
    """Chooses tokens until every item is finished or the room of `state.tokens` is used up."""

    def unfinished(state: DecodeState) -> Bool[Array, ""]:
        return jnp.any(_active(state, grammar)) & (state.step < state.tokens.shape[1])

    def one_token(state: DecodeState) -> DecodeState:
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=1)
        hidden, cache = model.apply({"params": params}, newest, cache=state.cache)
        logits = model.apply({"params": params}, hidden[:, 0], method=Qwen2.logits)
        return _take(state.replace(cache=cache), logits, grammar, method)

    return jax.lax.while_loop(unfinished, one_token, state)


def grow(state: DecodeState, grammar: Grammar, length: int) -> DecodeState:
    """Returns the same state with room for `length` more tokens."""
    tokens = jnp.pad(state.tokens, ((0, 0), (0, length)), constant_values=grammar.end_id)
    return state.replace(cache=state.cache.extend(length), tokens=tokens)


class Generator:
    """Answers prompts with one model; holds its compiled programs."""

    def __init__(
        self,
        model: Qwen2,
        params: Any,
        tokenizer: SparkTokenizer,
        global_tokens: int | np.integer = 32,
        *,
        max_semantic_tokens: int | np.integer,
        mesh: Mesh | None = None,
        prompt_buckets: Sequence[int] | None = None,
        output_buckets: Sequence[int] | None = None,
    ):
        """Args:
          model, params: the decoder and its parameters, unboxed, as they lie on the mesh.
          tokenizer: names the speech tokens.
          global_tokens: global tokens of an utterance.
          max_semantic_tokens: the longest answer's.
          mesh: divides the rows of a batch over data and fsdp, the model as `params` are; None: the default device.
          prompt_buckets, output_buckets: ascending lengths; the last ones are the longest possible. None: those of
            `buckets`.

        Raises:
          SparkError: the model has fewer token rows than the tokenizer has tokens.
        """
        self.params = params
        self._tokenizer = tokenizer
        self._context = model.config.max_position_embeddings
        mesh = placement.mesh_or_device(mesh)
        self._shards = placement.row_shards(mesh)
        grammar = build_grammar(tokenizer, int(global_tokens), model.config.vocab_size)
        self._grammar = jax.device_put(grammar, replicated(mesh))
        self._max_semantic_tokens = int(max_semantic_tokens)
        self._longest_answer = grammar.index("first_semantic") + self._max_semantic_tokens + 1
        self._prompt_buckets = tuple(prompt_buckets or lengths_up_to(MAX_PROMPT_TOKENS))
        self._output_buckets = tuple(output_buckets or doubling(FIRST_ROOM, self._longest_answer))
        self._prefill, self._decode, self._grow = self._compile(model, mesh)

    def _compile(self, model: Qwen2, mesh: Mesh) -> tuple[Callable[..., DecodeState], ...]:
        """Compiles `prefill`, `decode` and `grow` for a mesh: rows are divided, keys and values by their heads, too."""
        place = lambda *names: NamedSharding(mesh, spec(mesh, *names))  # noqa: E731
        rows, whole, params = batch_sharding(mesh), replicated(mesh), placement.shardings_of(self.params)
        keys_and_values = place(None, "batch", "kv_heads", None, None)
        cache = KVCache(keys_and_values, keys_and_values, rows)
        state = DecodeState(cache, tokens=rows, stage=rows, limits=rows, keys=rows, step=whole)
        return (
            jax.jit(
                under_mesh(partial(prefill, model), mesh),
                static_argnums=8,
                in_shardings=(params, rows, rows, rows, rows, rows, whole, whole),
                out_shardings=state,
            ),
            jax.jit(
                under_mesh(partial(decode, model), mesh),
                donate_argnums=1,
                in_shardings=(params, state, whole, whole),
                out_shardings=state,
            ),
            jax.jit(under_mesh(grow, mesh), static_argnums=2, in_shardings=(state, whole), out_shardings=state),
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int | np.integer],
        method: Greedy | Sampling = Sampling(),  # noqa: B008 (frozen)
        max_new_tokens: int | np.integer | Sequence[int | np.integer] | None = None,
    ) -> list[Generation]:
        """Answers a batch of prompts with speech tokens.

        An answer depends on its own prompt and seed only: not on the others in the batch, nor on buckets.

        Args:
          prompts: at least one; each batch size compiles its own programs.
          seeds: one for each prompt.
          method: greedy or sampling; only tokens that the grammar allows take part.
          max_new_tokens: the limit, of all or of each, <|im_end|> included; less where the context ends. None: the
            longest answer.

        Raises:
          SparkError: a prompt is too long, or a limit leaves no room for speech; see `new_tokens`.
        """
        if len(prompts) != len(seeds) or not prompts:
            raise SparkError(f"{len(prompts)} prompts and {len(seeds)} seeds, expected a seed for each prompt")
        wanted = self._longest_answer if max_new_tokens is None else max_new_tokens
        limits = self._limits(prompts, np.broadcast_to(np.asarray(wanted), len(prompts)))
        state = self._start(prompts, seeds, limits, method)
        room, *more = self._output_buckets
        state = self._decode(self.params, state, self._grammar, method)
        for larger in more:
            stages = np.asarray(state.stage)[: len(prompts)]
            if not np.any((stages != self._done) & (room < limits)):
                break
            state = self._grow(state, self._grammar, larger - room)
            state = self._decode(self.params, state, self._grammar, method)
            room = larger
        tokens, stages = np.asarray(state.tokens), np.asarray(state.stage)
        return [
            answers.read(self._tokenizer, prompt, tokens[row, : limits[row]], bool(stages[row] != self._done))
            for row, prompt in enumerate(prompts)
        ]

    def _start(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int | np.integer],
        limits: Int[np.ndarray, " batch"],
        method: Greedy | Sampling,
    ) -> DecodeState:
        """Reads the prompts; rows that fill the last shard are of one token and have no limit left."""
        rows = -(-len(prompts) // self._shards) * self._shards
        lengths, stage, all_limits = np.ones(rows, np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        all_seeds = np.zeros(rows, np.uint32)
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = np.zeros((rows, next(size for size in self._prompt_buckets if size >= longest)), np.int32)
        for row, prompt in enumerate(prompts):
            lengths[row], stage[row] = len(prompt.ids), self._grammar.index(prompt.start)
            ids[row, : len(prompt.ids)] = prompt.ids
        all_limits[: len(prompts)], all_seeds[: len(prompts)] = limits, seeds
        keys = jax.vmap(jax.random.key)(all_seeds)
        return self._prefill(
            self.params, ids, lengths, stage, all_limits, keys, self._grammar, method, self._output_buckets[0]
        )

    def new_tokens(self, prompt: Prompt, semantic_tokens: int) -> int:
        """Returns the limit on new tokens with which an answer holds at most this many semantic tokens."""
        return answers.new_tokens(self._grammar, prompt, semantic_tokens)

    def room(self, prompt: Prompt) -> int:
        """Returns the most semantic tokens that an answer can hold; below 1: the prompt is too long."""
        if len(prompt.ids) > self._prompt_buckets[-1]:
            return 0
        return self._longest(prompt) - self.new_tokens(prompt, 0)

    @property
    def _done(self) -> int:
        return self._grammar.index("done")

    def _longest(self, prompt: Prompt) -> int:
        longest = self.new_tokens(prompt, self._max_semantic_tokens)
        return min(self._context - len(prompt.ids), self._output_buckets[-1], longest)

    def _limits(self, prompts: Sequence[Prompt], wanted: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        limits = []
        for prompt, limit in zip(prompts, wanted, strict=True):
            if self.room(prompt) < 1:
                longest = min(self._context - self.new_tokens(prompt, 1), self._prompt_buckets[-1])
                raise SparkError(f"the prompt has {len(prompt.ids)} tokens, expected at most {longest}")
            least = self.new_tokens(prompt, 0)
            if limit < least:
                raise SparkError(f"max_new_tokens is {limit}, expected at least {least} for this prompt")
            limits.append(min(limit, self._longest(prompt)))
        return np.array(limits, np.int32)


def _active(state: DecodeState, grammar: Grammar) -> Bool[Array, " batch"]:
    return (state.stage != grammar.index("done")) & (state.step < state.limits)


def _take(
    state: DecodeState, logits: Float[Array, "batch vocab"], grammar: Grammar, method: Greedy | Sampling
) -> DecodeState:
    """Chooses a token for each item among those that its stage allows, and moves on."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)
    token = choose(method, jnp.where(grammar.mask(state.stage), logits, -jnp.inf), keys)
    active = _active(state, grammar)
    token = jnp.where(active, token, grammar.end_id)
    return state.replace(
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.step, axis=1),
        stage=jnp.where(active, grammar.advance(state.stage, token), state.stage),
        step=state.step + 1,
    )
