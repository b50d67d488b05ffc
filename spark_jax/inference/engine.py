"""Continuous batching: any number of prompts through a fixed number of slots, in programs that are compiled once.

    engine = Engine(model, params, tokenizer, max_semantic_tokens=3000)
    tickets = [engine.submit(job) for job in jobs]
    while engine.busy:
        for update in engine.turn():
            ...

Between two blocks of decode steps finished slots are filled with new prompts. The host works a block behind: while the
device computes one, the codes and flags of the one before arrive by an asynchronous copy. What a job gets
depends on the job and on the settings alone: not on its neighbors, its slot, or when it came.

One thread uses an engine; see `speech_engine` for many.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from spark_jax.errors import SparkError
from spark_jax.inference import answers, placement, scheduler, slots
from spark_jax.inference.answers import Generation
from spark_jax.inference.buckets import lengths_up_to
from spark_jax.inference.sampling import Sampling
from spark_jax.inference.scheduler import Admission, Block, Scheduler
from spark_jax.inference.slots import Head, Prompts, SlotState
from spark_jax.qwen2 import decoding
from spark_jax.qwen2.model import Qwen2
from spark_jax.qwen2.slot_cache import KEY_AXES
from spark_jax.sharding import batch_sharding, replicated, spec, under_mesh
from spark_jax.text.grammar import build_grammar, restrict
from spark_jax.text.prompt import Prompt
from spark_jax.text.tokenizer import SparkTokenizer

MAX_PROMPT_TOKENS = 4096  # the scores of a prompt's attention grow with the square of its length
PROMPT_ROOM = 512  # tokens that a slot has room for beside the longest answer, at least


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """What fixes an engine's programs, and so the last bits of what it computes.

    Attributes:
      slots: how many requests decode together.
      block: decode steps between two refills.
      capacity: tokens of prompt and answer that a slot has room for, a power of two; None: what holds the model's
        longest answer.
      prompt_rows: prompts that are read together, at most; None: a quarter of the slots, up to 8.
      prompt_tokens: padded tokens that are read together, at most; a longer prompt is read alone.
      max_top_k: the largest top-k of a request; a larger one costs time at every step, whoever asks for it.
      behind: blocks that the host is behind the device; None: one, on CPUs, which are the same processors, none. It
        changes nothing of what a request gets.

    Raises:
      SparkError: from the constructor, for a number that is out of range.
    """

    slots: int = 16
    block: int = 8
    capacity: int | None = None
    prompt_rows: int | None = None
    prompt_tokens: int = 2048
    max_top_k: int = 64
    behind: int | None = None

    def __post_init__(self):
        for name in ("slots", "block", "prompt_rows", "prompt_tokens", "max_top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SparkError(f"engine: {name} is {value}, expected 1 or more")
        if self.behind is not None and self.behind < 0:
            raise SparkError(f"engine: behind is {self.behind}, expected 0 or more")
        least = scheduler.SMALLEST_WINDOW
        if self.capacity is not None and (self.capacity < least or self.capacity & (self.capacity - 1)):
            raise SparkError(f"engine: capacity is {self.capacity}, expected a power of two from {least}")


@dataclasses.dataclass(frozen=True)
class Job:
    """A prompt, and how it is answered.

    Attributes:
      prompt: the prompt.
      limit: the most new tokens, <|im_end|> included; see `Engine.new_tokens`.
      seed: of the draws.
      temperature, top_p, top_k, greedy: see `sampling`.
    """

    prompt: Prompt
    limit: int
    seed: int = 0
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 50
    greedy: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """What a block brought to a job: new tokens, and with the last of them the whole answer."""

    ticket: int
    tokens: Int[np.ndarray, " new"]
    generation: Generation | None


def capacity_of(tokens: int, block: int) -> int:
    """Returns the capacity of slots that have room for so many tokens, in blocks of `block`."""
    return max(scheduler.SMALLEST_WINDOW, 1 << (tokens + block - 1).bit_length())


class Engine:
    """Answers jobs with one model; holds its compiled programs and the slots on the devices."""

    def __init__(
        self,
        model: Qwen2,
        params: Any,
        tokenizer: SparkTokenizer,
        global_tokens: int = 32,
        *,
        max_semantic_tokens: int,
        settings: EngineSettings = EngineSettings(),
        mesh: Mesh | None = None,
    ):
        """Args:
          model, params: the decoder and its parameters, unboxed, as they lie on the mesh.
          tokenizer: names the speech tokens.
          global_tokens: global tokens of an utterance.
          max_semantic_tokens: the longest answer's.
          settings: sizes of the programs.
          mesh: divides slots over data and fsdp, the model as `params` are; None: the default device.

        Raises:
          SparkError: the mesh does not divide the slots, or the model has fewer token rows than the tokenizer tokens.
        """
        self.settings = settings
        self._model, self._params, self._tokenizer = model, params, tokenizer
        self._mesh = mesh = placement.mesh_or_device(mesh)
        shards = placement.row_shards(mesh)
        if settings.slots % shards:
            raise SparkError(
                f"engine: slots is {settings.slots}, expected a multiple of the {shards} devices of a batch"
            )
        grammar = build_grammar(tokenizer, global_tokens, model.config.vocab_size)
        self._longest_answer = grammar.index("first_semantic") + max_semantic_tokens + 1
        self._ids, small = restrict(grammar)
        self._grammar = jax.device_put(small, replicated(mesh))
        self._capacity = settings.capacity or capacity_of(self._longest_answer + PROMPT_ROOM, settings.block)
        # Tokens that a slot may hold in the end: whole blocks are merged into the cache.
        self._room = min(model.config.max_position_embeddings, self._capacity - settings.block)
        longest = min(MAX_PROMPT_TOKENS, self._room)
        lengths = [length for length in lengths_up_to(longest) if length <= self._capacity]
        self._longest_prompt = min(longest, lengths[-1])
        rows = [self._prompt_rows(length, shards) for length in lengths]
        on_cpu = placement.on_cpu(mesh)
        self._behind = int(not on_cpu) if settings.behind is None else settings.behind
        # On CPUs one program reads as much of the cache as the longest slot needs; see `slot_cache`.
        windows = (self._capacity,) if on_cpu else scheduler.windows(self._capacity)
        self._prefills = dict(zip(lengths, rows, strict=True))
        self._schedule = partial(Scheduler, settings.slots, settings.block, windows, lengths, rows)
        self._compile(windows)
        self._next_ticket = 0
        self.reset()

    def reset(self) -> None:
        """Drops all jobs and makes the slots anew, as after an error on the device."""
        self._scheduler = self._schedule()
        self._state: SlotState = self._start()
        self._jobs: dict[int, Job] = {}
        self._tokens: dict[int, list[np.ndarray]] = {}
        self._pending: collections.deque[tuple[Block, jax.Array, jax.Array]] = collections.deque()

    @property
    def busy(self) -> bool:
        """Returns whether there is anything left to do."""
        return bool(self._jobs)

    @property
    def load(self) -> tuple[int, int]:
        """Returns how many jobs wait and how many are in slots."""
        return self._scheduler.waiting, self._scheduler.running

    def new_tokens(self, prompt: Prompt, semantic_tokens: int) -> int:
        """Returns the limit on new tokens with which an answer holds at most this many semantic tokens."""
        return answers.new_tokens(self._grammar, prompt, semantic_tokens)

    def room(self, prompt: Prompt) -> int:
        """Returns the most semantic tokens that an answer can hold; below 1: the prompt is too long."""
        if len(prompt.ids) > self._longest_prompt:
            return 0
        most = min(self._room - len(prompt.ids), self._longest_answer)
        return most - self.new_tokens(prompt, 0)

    def speech_codes(
        self, tokens: Int[np.ndarray, " new"]
    ) -> tuple[Int[np.ndarray, " time"], Int[np.ndarray, " global"]]:
        """Returns the semantic and the global codes among the tokens of an update."""
        return answers.speech_codes(self._tokenizer, tokens)

    def submit(self, job: Job) -> int:
        """Puts a job in the queue and returns its ticket.

        Raises:
          SparkError: the prompt is too long, or the limit or top-k is out of range.
        """
        room, least = self.room(job.prompt), self.new_tokens(job.prompt, 0)
        if room < 1:
            raise SparkError(f"the prompt has {len(job.prompt.ids)} tokens and leaves no room for an answer")
        if not least <= job.limit <= least + room:
            raise SparkError(f"the limit is {job.limit} new tokens, expected {least} to {least + room} for this prompt")
        if not 1 <= job.top_k <= self.settings.max_top_k:
            most = self.settings.max_top_k
            raise SparkError(f"top_k is {job.top_k}, expected at most {most}, the engine's max_top_k")
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._jobs[ticket], self._tokens[ticket] = job, []
        self._scheduler.submit(ticket, len(job.prompt.ids))
        return ticket

    def cancel(self, ticket: int) -> bool:
        """Lets a job go; its slot is free for the next block. False: it was gone already."""
        self._jobs.pop(ticket, None)
        self._tokens.pop(ticket, None)
        return self._scheduler.cancel(ticket)

    def turn(self) -> list[Update]:
        """Fills free slots, starts a block, and returns what the block before brought (on CPUs: this one)."""
        for admission in self._scheduler.admissions():
            self._admit(admission)
        block = self._scheduler.begin_block()
        if block is not None:
            decode = self._blocks[block.window]
            self._state, *results = decode(self._decoding_params, self._head, self._grammar, self._state)
            for result in results:
                result.copy_to_host_async()
            self._pending.append((block, *results))
        updates = []
        while len(self._pending) > (0 if block is None else self._behind):
            updates += self._collect(*self._pending.popleft())
        return updates

    def warmup(self) -> None:
        """Compiles every program, on empty slots; after it no job compiles anything.

        Raises:
          SparkError: jobs are at work.
        """
        if self.busy:
            raise SparkError("the engine cannot warm up while jobs are at work")
        for length, rows in self._prefills.items():
            self._admit(Admission(length, rows, (), ()))
        for block in self._blocks.values():
            self._state, codes, _ = block(self._decoding_params, self._head, self._grammar, self._state)
        codes.block_until_ready()

    def _prompt_rows(self, length: int, shards: int) -> int:
        """Returns the rows of the prefill of a length: a power of two on each shard."""
        wanted = self.settings.prompt_rows or min(8, max(1, self.settings.slots // 4))
        rows = min(wanted // shards, self.settings.prompt_tokens // length, self.settings.slots // shards)
        return shards * (1 << (max(1, rows).bit_length() - 1))

    def _compile(self, windows: Sequence[int]) -> None:
        """Places the head, and makes the programs for a mesh."""
        mesh, model, size = self._mesh, self._model, self.settings
        rows, whole = batch_sharding(mesh), replicated(mesh)
        keys_and_values = NamedSharding(mesh, spec(mesh, *KEY_AXES))
        apart = mesh.size == 1 and placement.on_cpu(mesh)  # see `decoding`
        self._decoding_params = decoding.take_apart(self._params, mesh) if apart else self._params
        near_block, done = size.block if apart else 0, self._grammar.index("done")
        start = partial(slots.init_state, model, size.slots, self._capacity, done, near_block)
        state = jax.tree.map(lambda leaf: keys_and_values if leaf.ndim == 5 else rows, jax.eval_shape(start))
        self._start = jax.jit(start, out_shardings=state)
        divided = NamedSharding(mesh, spec(mesh, "vocab", None))
        ids = jnp.asarray(self._ids)
        embedding = jax.jit(lambda table: table[ids].astype(model.dtype), out_shardings=divided)(
            self._params["embed"]["embedding"]
        )
        output = embedding
        if not model.config.tie_word_embeddings:
            output = jax.jit(lambda table: table[:, ids].T.astype(model.dtype), out_shardings=divided)(
                self._params["head"]
            )
        self._head = Head(embedding, output)
        self._read = jax.jit(
            under_mesh(partial(slots.admit, model, size.max_top_k), mesh),
            donate_argnums=3,
            in_shardings=(placement.shardings_of(self._params), divided, whole, state, rows),
            out_shardings=state,
        )
        decode = partial(slots.decode_block, model, size.max_top_k, size.block, apart=placement.on_gpu(mesh))
        self._blocks: dict[int, Callable[..., Any]] = {
            window: jax.jit(
                under_mesh(partial(decode, window), mesh),
                donate_argnums=3,
                in_shardings=(placement.shardings_of(self._decoding_params), divided, whole, state),
                out_shardings=(state, rows, rows),
            )
            for window in windows
        }

    def _admit(self, admission: Admission) -> None:
        rows, done = admission.rows, self._grammar.index("done")
        columns = {
            "lengths": np.ones(rows, np.int32),
            "slots": np.full(rows, self.settings.slots, np.int32),
            "stage": np.full(rows, done, np.int32),
            "limit": np.zeros(rows, np.int32),
            "seed": np.zeros(rows, np.uint32),
            "temperature": np.ones(rows, np.float32),
            "top_p": np.ones(rows, np.float32),
            "top_k": np.ones(rows, np.int32),
            "greedy": np.zeros(rows, bool),
        }
        ids = np.zeros((rows, admission.length), np.int32)
        for row, (ticket, slot) in enumerate(zip(admission.tickets, admission.slots, strict=True)):
            job = self._jobs[ticket]
            ids[row, : len(job.prompt.ids)] = job.prompt.ids
            columns["lengths"][row], columns["slots"][row] = len(job.prompt.ids), slot
            columns["stage"][row] = self._grammar.index(job.prompt.start)
            for name in ("limit", "seed", "temperature", "top_p", "top_k", "greedy"):
                columns[name][row] = getattr(job, name)
        placed = jax.device_put({"ids": ids, **columns}, batch_sharding(self._mesh))
        sampling = Sampling(**{name: placed.pop(name) for name in ("temperature", "top_p", "top_k", "greedy")})
        prompts = Prompts(sampling=sampling, **placed)
        self._state = self._read(self._params, self._head, self._grammar, self._state, prompts)

    def _collect(self, block: Block, codes: jax.Array, flags: jax.Array) -> list[Update]:
        """Reads what a block brought; those who left meanwhile are passed over."""
        chosen, ends = jax.device_get((codes, flags))
        updates = []
        for slot, ticket in enumerate(block.tickets):
            if ticket is None or ticket not in self._jobs:
                continue
            tokens = self._ids[chosen[slot][chosen[slot] >= 0]]
            self._tokens[ticket].append(tokens)
            generation = None
            if ends[slot] != slots.RUNNING:
                self._scheduler.finish(ticket)
                prompt, whole = self._jobs.pop(ticket).prompt, np.concatenate(self._tokens.pop(ticket))
                generation = answers.read(self._tokenizer, prompt, whole, bool(ends[slot] == slots.CUT_OFF))
            updates.append(Update(ticket, tokens, generation))
        return updates
