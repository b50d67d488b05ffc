"""The programs of the speech engine for devices that are elsewhere: prefill, decode block and vocoder.

They are the functions that `inference.engine` and `inference.codec` compile, with the same shardings, over shapes;
there are no weights.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.inference import buckets, placement, slots, speech_tokens
from spark_jax.inference.engine import PROMPT_ROOM, EngineSettings, capacity_of
from spark_jax.inference.sampling import Sampling
from spark_jax.inference.slots import Head, Prompts, SlotState
from spark_jax.inference.speech_engine import VOCODED_TOGETHER
from spark_jax.model_directory.parameters import target_variables
from spark_jax.qwen2.model import Qwen2
from spark_jax.qwen2.slot_cache import KEY_AXES
from spark_jax.sharding import batch_sharding, replicated, spec, under_mesh
from spark_jax.text.grammar import Grammar, build_grammar, restrict
from spark_jax.text.tokenizer import build_tokenizer


@dataclasses.dataclass(frozen=True)
class EngineProgram:
    """A program that is not compiled yet.

    Attributes:
      name: of the program.
      sizes: its shape in words.
      jitted: the function.
      arguments: shapes, types and shardings of its arguments.
    """

    name: str
    sizes: str
    jitted: Any
    arguments: tuple[Any, ...]


class AbstractEngine:
    """Shapes of a speech engine on a mesh.

    Attributes:
      config: the model's sizes.
      settings: the engine's.
      mesh: the devices.
      capacity: tokens that a slot has room for.
      params, head, grammar, bicodec: what lies in memory beside the slots.
    """

    def __init__(self, config: SparkConfig, settings: EngineSettings, dtype: Any, mesh: Mesh):
        """Args:
          config, settings, mesh: see the class.
          dtype: of the language model's weight matrices, of the cache and of all computation.

        Raises:
          SparkError: the mesh does not divide the slots or the model.
        """
        self.config, self.settings, self.mesh = config, settings, mesh
        self.shards = placement.row_shards(mesh)
        if settings.slots % self.shards:
            raise SparkError(f"--slots is {settings.slots}, expected a multiple of the {self.shards} chips of a batch")
        self._dtype = jnp.dtype(dtype)
        self._model = Qwen2(config.llm, self._dtype)
        variables = target_variables(config, ("llm", "bicodec"), llm_dtype=self._dtype, mesh=mesh)
        self.params, self.bicodec = variables["llm"]["params"], variables["bicodec"]
        ids, small = restrict(_grammar(config))
        self.grammar = jax.tree.map(lambda leaf: _like(leaf, replicated(mesh)), small)
        self._longest_answer = small.index("first_semantic") + config.max_semantic_tokens + 1
        self.capacity = settings.capacity or capacity_of(self._longest_answer + PROMPT_ROOM, settings.block)
        self._done = small.index("done")
        divided = NamedSharding(mesh, spec(mesh, "vocab", None))
        rows = jax.ShapeDtypeStruct((len(ids), config.llm.hidden_size), self._dtype)
        self.head = jax.tree.map(lambda leaf: _like(leaf, divided), jax.eval_shape(Head, rows, rows))

    @property
    def state(self) -> SlotState:
        """Returns the slots."""
        start = partial(slots.init_state, self._model, self.settings.slots, self.capacity, self._done)
        rows, keys = batch_sharding(self.mesh), NamedSharding(self.mesh, spec(self.mesh, *KEY_AXES))
        return jax.tree.map(lambda leaf: _like(leaf, keys if leaf.ndim == 5 else rows), jax.eval_shape(start))

    def decode_block(self, window: int) -> EngineProgram:
        """Returns the program of a block of decode steps that reads `window` places of each slot.

        Raises:
          SparkError: the slots have not so much room.
        """
        if not 0 < window <= self.capacity:
            raise SparkError(f"--window is {window}, expected 1 to {self.capacity}, the slots' capacity")
        state, rows, size = self.state, batch_sharding(self.mesh), self.settings
        arguments = (self.params, self.head, self.grammar, state)
        apart = placement.on_gpu(self.mesh)
        decode = partial(slots.decode_block, self._model, size.max_top_k, size.block, window, apart=apart)
        jitted = jax.jit(
            under_mesh(decode, self.mesh),
            donate_argnums=3,
            in_shardings=placement.shardings_of(arguments),
            out_shardings=(placement.shardings_of(state), rows, rows),
        )
        sizes = f"{size.block} steps of {size.slots} slots, {window} of {self.capacity} places read"
        return EngineProgram("decode block", sizes, jitted, arguments)

    def prefill(self, tokens: int) -> EngineProgram:
        """Returns the program that reads prompts of up to `tokens` tokens into slots."""
        length, size = buckets.bucket(tokens), self.settings
        wanted = size.prompt_rows or min(8, max(1, size.slots // 4))
        rows = min(wanted // self.shards, size.prompt_tokens // length, size.slots // self.shards)
        rows = self.shards * (1 << (max(1, rows).bit_length() - 1))
        state = self.state

        def empty() -> Prompts:
            whole, real = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32)
            sampling = Sampling(real, real, whole, jnp.zeros(rows, bool))
            ids, seed = jnp.zeros((rows, length), jnp.int32), jnp.zeros(rows, jnp.uint32)
            return Prompts(ids, whole, whole, whole, whole, seed, sampling)

        prompts = jax.tree.map(lambda leaf: _like(leaf, batch_sharding(self.mesh)), jax.eval_shape(empty))
        arguments = (self.params, self.head, self.grammar, state, prompts)
        jitted = jax.jit(
            under_mesh(partial(slots.admit, self._model, size.max_top_k), self.mesh),
            donate_argnums=3,
            in_shardings=placement.shardings_of(arguments),
            out_shardings=placement.shardings_of(state),
        )
        return EngineProgram("prefill", f"{rows} prompts of {length} tokens", jitted, arguments)

    def vocoder(self, tokens: int) -> tuple[EngineProgram, int]:
        """Returns the program that makes speech of up to `tokens` tokens, and how many rows its batch has."""
        length = buckets.bucket(tokens)
        [batch] = buckets.batches([length], VOCODED_TOGETHER, self.shards, full=True)
        where = batch_sharding(self.mesh)
        shapes = ((length, jnp.int32), (self.config.bicodec.speaker_encoder.token_num, jnp.int32), (length, jnp.bool_))
        arrays = [jax.ShapeDtypeStruct((batch.rows, size), dtype, sharding=where) for size, dtype in shapes]
        jitted = jax.jit(
            under_mesh(partial(speech_tokens.detokenize, config=self.config, dtype=self._dtype), self.mesh),
            in_shardings=(placement.shardings_of(self.bicodec), *[where] * len(arrays)),
            out_shardings=where,
        )
        program = EngineProgram("vocoder", f"{batch.rows} × {length} tokens", jitted, (self.bicodec, *arrays))
        return program, batch.rows

    @property
    def resident(self) -> float:
        """Returns the bytes a chip that lie in memory all the time: weights, head and slots."""
        head = self.head.embedding if self.config.llm.tie_word_embeddings else self.head
        return chip_bytes((self.params, head, self.grammar, self.bicodec, self.state))

    def ideal_bytes(self, window: int) -> float:
        """Returns the bytes a chip that a decode step must read: weights and head once, `window` of the cache once."""
        layers = {name: tree for name, tree in self.params.items() if name not in ("embed", "head")}
        keys = self.state.cache.keys
        cache = 2 * chip_bytes(keys) * window / self.capacity
        return chip_bytes((layers, self.head.output)) + cache


def chip_bytes(tree: Any) -> float:
    """Returns the bytes of abstract arrays with shardings on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _like(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _grammar(config: SparkConfig) -> Grammar:
    """Returns a grammar with as many tokens as the model's: how they are numbered changes no program."""
    speaker = config.bicodec.speaker_encoder
    tokenizer = build_tokenizer("bytes", config.bicodec.quantizer.codebook_size, math.prod(speaker.fsq_levels))
    return build_grammar(tokenizer, speaker.token_num, max(config.llm.vocab_size, tokenizer.vocab_size))
