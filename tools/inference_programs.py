"""The programs of speech one by one, for tools/benchmark_inference.py: encode, vocode, prefill and decode."""

import dataclasses
import functools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from inference_subject import Subject
from inference_timing import Compiler, Measurement, Side, alternate, measured, moved_bytes
from jaxtyping import Float, Int

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.inference import placement, scheduler, slots, speech_tokens
from spark_jax.inference.buckets import Batch, bucket
from spark_jax.inference.codec import Codec
from spark_jax.inference.engine import Engine, EngineSettings, Job, Update
from spark_jax.inference.sampling import Sampling
from spark_jax.inference.slots import Head, Prompts
from spark_jax.performance.flops import count_flops, llm_flops, traced_flops
from spark_jax.planning.engine_programs import AbstractEngine
from spark_jax.qwen2.model import Qwen2
from spark_jax.qwen2.slot_attention import PART
from spark_jax.sharding import batch_sharding, under_mesh
from spark_jax.text.grammar import build_grammar, restrict
from spark_jax.text.prompt import END, Prompt
from spark_jax.wav2vec2.model import num_samples

if TYPE_CHECKING:
    import torch_inference

WARM_BLOCKS = 3  # decode blocks before the first that is timed


@dataclasses.dataclass
class Bench:
    """What all sections share.

    Attributes:
      subject: what is measured.
      rounds: of each measurement.
      torch: "torch_inference" where PyTorch is compared with; None: it is not.
      reference: checkout of the official repository; None: no comparison of the codec.
      compiler: counts compilations.
    """

    subject: Subject
    rounds: int
    torch: Any
    reference: Path | None
    compiler: Compiler

    @functools.cached_property
    def torch_codec(self) -> "torch_inference.Codec | None":
        """Returns PyTorch's codec; None: there is no comparison."""
        if self.torch is None or self.reference is None:
            return None
        return self.torch.Codec(self.reference, self.subject.sizes, self.subject.codec_variables)

    @functools.cached_property
    def torch_llm(self) -> "torch_inference.LanguageModel | None":
        """Returns PyTorch's language model; None: there is no comparison."""
        if self.torch is None or self.subject.dtype != "float32":
            return None
        subject = self.subject
        allowed = np.sort(np.append(subject.tokenizer.semantic_ids, subject.tokenizer.id(END)))
        return self.torch.LanguageModel(subject.sizes, subject.llm_variables, allowed)


def encode(bench: Bench, seconds: float) -> Iterator[Measurement]:
    """Measures speech to tokens: one recording, in float32 always."""
    config, variables = bench.subject.sizes, bench.subject.codec_variables
    frames = bucket(round(seconds * config.token_rate))
    # A whole padded length, so that neither side computes padding.
    samples = np.random.default_rng(0).normal(0, 0.1, num_samples(frames, config.wav2vec2))
    codec = Codec(config, variables)
    batch = codec.pad([speech_tokens.prepare(samples, config)], Batch(frames, 1, (0,)))
    before = bench.compiler.seconds
    [[ours]] = list(codec.encode_padded([batch]))
    sides: dict[str, Side] = {"ours": lambda count: list(codec.encode_padded([batch] * count))}
    more = {}
    if bench.torch_codec is not None:
        theirs = bench.torch_codec.encode(batch["samples"], batch["clips"])
        same = [float(np.mean(own == other[0])) for own, other in zip(ours, theirs, strict=True)]
        more["equal global and semantic ids"] = same
        sides["PyTorch"] = _repeat(lambda: bench.torch_codec.encode(batch["samples"], batch["clips"]))
    times = alternate(sides, bench.rounds)
    arrays = [batch[name] for name in ("samples", "lengths", "clips")]
    own = variables["wav2vec2"], variables["bicodec"]
    operations = traced_flops(partial(speech_tokens.tokenize, config=config), *own, *arrays)
    sizes, amount = f"1 × {frames} tokens, float32", frames / config.token_rate
    compiling = bench.compiler.seconds - before
    yield measured("encode", sizes, "audio s", amount, times, "float32", operations, compiling=compiling, more=more)


def vocode(bench: Bench, seconds: float, kinds: list[str], rows: list[int]) -> Iterator[Measurement]:
    """Measures tokens to speech in each kind of arithmetic, and how far its waveform is from float32's."""
    config, variables = bench.subject.sizes, bench.subject.codec_variables["bicodec"]
    length = bucket(round(seconds * config.token_rate))
    rng = np.random.default_rng(1)
    codes = config.bicodec.quantizer.codebook_size, bench.subject.tokenizer.global_ids.size
    for count in rows:
        semantic_ids = rng.integers(codes[0], size=(count, length), dtype=np.int32)
        global_ids = rng.integers(codes[1], size=(count, config.bicodec.speaker_encoder.token_num), dtype=np.int32)
        arrays = semantic_ids, global_ids, np.ones((count, length), bool)
        exact: np.ndarray | None = None
        for kind in kinds:
            before = bench.compiler.seconds
            traced = vocoder(config, variables, kind, bench.subject).trace(variables, *arrays)
            compiled = traced.lower().compile()
            placed = jax.device_put(arrays, batch_sharding(bench.subject.mesh))
            run = partial(compiled, variables, *placed)
            wave = np.asarray(run())
            exact = wave if kind == "float32" else exact
            more = {} if exact is None or kind == "float32" else {"signal to noise, dB": signal_to_noise(exact, wave)}
            sides = {"ours": _repeat(run)}
            if bench.torch_codec is not None and kind == "float32":
                theirs = bench.torch_codec.vocode(semantic_ids, global_ids)
                more["signal to noise beside PyTorch, dB"] = signal_to_noise(theirs, wave)
                sides["PyTorch"] = _repeat(partial(bench.torch_codec.vocode, semantic_ids, global_ids))
            times = alternate(sides, bench.rounds)
            operations, moved = count_flops(traced.jaxpr), moved_bytes(compiled)
            sizes, amount = f"{count} × {length} tokens, {kind}", count * length / config.token_rate
            compiling = bench.compiler.seconds - before
            yield measured("vocode", sizes, "audio s", amount, times, kind, operations, moved, compiling, more)


def vocoder(config: SparkConfig, variables: Any, kind: str, subject: Subject) -> Any:
    """Returns the vocoder that is not compiled yet: as `Codec` compiles it, or ("tf32") by the backend's default."""
    rows = batch_sharding(subject.mesh)

    def by_default(variables: Any, *arrays: Any, config: SparkConfig) -> Any:
        return BiCodec(config.bicodec).apply(variables, *arrays, method="detokenize")

    dtype = jnp.bfloat16 if kind == "bfloat16" else jnp.float32
    function = by_default if kind == "tf32" else partial(speech_tokens.detokenize, dtype=dtype)
    return jax.jit(
        under_mesh(partial(function, config=config), subject.mesh),
        in_shardings=(placement.shardings_of(variables), rows, rows, rows),
        out_shardings=rows,
    )


def prefill(bench: Bench, tokens: int, rows: list[int]) -> Iterator[Measurement]:
    """Measures the reading of prompts into slots."""
    subject, config = bench.subject, bench.subject.sizes
    params = subject.llm_variables["params"]
    length = bucket(tokens)
    capacity = max(scheduler.SMALLEST_WINDOW, 1 << (length - 1).bit_length())
    for count in rows:
        settings = EngineSettings(
            slots=count, block=subject.block, capacity=capacity, prompt_rows=count, prompt_tokens=count * length
        )
        engine = AbstractEngine(config, settings, subject.dtype, subject.mesh)
        program = engine.prefill(length)
        speaker = config.bicodec.speaker_encoder
        ids, grammar = restrict(build_grammar(subject.tokenizer, speaker.token_num, config.llm.vocab_size))
        head = _head(config, params, ids, subject.dtype)
        done, first = grammar.index("done"), grammar.index("first_semantic")
        model = Qwen2(config.llm, jnp.dtype(subject.dtype))
        start = partial(slots.init_state, model, count, capacity, done)
        state = jax.jit(start, out_shardings=placement.shardings_of(engine.state))()
        prompts = _prompts(subject, count, length)
        whole, one = jnp.zeros(count, jnp.int32), jnp.ones(count, jnp.float32)
        asked = Prompts(
            ids=jnp.asarray(prompts),
            lengths=whole + length,
            slots=jnp.arange(count, dtype=jnp.int32),
            stage=whole + first,
            limit=whole + 9,
            seed=whole.astype(jnp.uint32),
            sampling=Sampling(one, one, whole + 1, jnp.ones(count, bool)),
        )
        asked = jax.device_put(asked, batch_sharding(subject.mesh))
        before = bench.compiler.seconds

        def ours(times: int, program: Any = program, head: Any = head, grammar: Any = grammar, asked: Any = asked):
            nonlocal state
            for _ in range(times):
                state = program.jitted(params, head, grammar, state, asked)
            jax.block_until_ready(state.answers.token)

        sides: dict[str, Side] = {"ours": ours}
        ours(1)
        more = {}
        if bench.torch_llm is not None:
            theirs = bench.torch_llm.read(prompts).tokens[:, 0]
            more["equal tokens"] = float(np.mean(ids[np.asarray(state.answers.token)] == theirs))
            sides["PyTorch"] = _repeat(partial(bench.torch_llm.read, prompts))
        times = alternate(sides, bench.rounds)
        sized = dataclasses.replace(config.llm, vocab_size=len(ids))
        operations = llm_flops(sized, count * length, count, count * length * (length + 1) / 2)
        moved = engine.ideal_bytes(0)
        sizes, amount = f"{count} × {length} tokens, {subject.dtype}", count * length
        compiling = bench.compiler.seconds - before
        yield measured("prefill", sizes, "tokens", amount, times, subject.dtype, operations, moved, compiling, more)


def decode(bench: Bench, context: int, slots_of: list[int], trace: Path | None) -> Iterator[Measurement]:
    """Measures decode blocks of a full engine, host and all, from prompts of `context` tokens on.

    Args:
      bench: what all sections share.
      context: tokens of the prompts.
      slots_of: numbers of slots, one engine after the other.
      trace: folder for a profile of some blocks of each; None: none.
    """
    subject, config = bench.subject, bench.subject.sizes
    for count in slots_of:
        before = bench.compiler.seconds
        settings = EngineSettings(slots=count, block=subject.block, capacity=subject.capacity)
        engine = Engine(
            Qwen2(config.llm, jnp.dtype(subject.dtype)),
            subject.llm_variables["params"],
            subject.tokenizer,
            config.bicodec.speaker_encoder.token_num,
            max_semantic_tokens=config.max_semantic_tokens,
            settings=settings,
        )
        on_cpu = placement.on_cpu(subject.mesh)
        window = next(size for size in scheduler.windows(subject.capacity) if size > context)
        blocks = (window - context) // subject.block  # until another window is read
        blocks -= 0 if trace is None else 1
        if blocks < WARM_BLOCKS + 1 + bench.rounds:
            raise SparkError(f"--context is {context}, which leaves {blocks} blocks up to {window} tokens: too few")
        most = (blocks - WARM_BLOCKS - 1) // bench.rounds
        prompts = _prompts(subject, count, context)
        decoding = _Decoding(engine, prompts)
        sides: dict[str, Side] = {"ours": decoding.run}
        if bench.torch_llm is not None:
            answers = bench.torch_llm.read(prompts)
            sides["PyTorch"] = lambda times, answers=answers: answers.go_on(times * subject.block)
        times = alternate(sides, bench.rounds, most, warm=WARM_BLOCKS)
        more: dict[str, Any] = {}
        if bench.torch_llm is not None:
            pairs = zip(decoding.tokens(), answers.tokens, strict=True)
            same = [own[: len(their)] == their[: len(own)] for own, their in pairs]
            more["equal tokens"] = float(np.mean(np.concatenate(same)))
        if trace is not None:
            with jax.profiler.trace(str(trace / f"decode_{count}")):
                decoding.run(1)
        abstract = AbstractEngine(config, settings, subject.dtype, subject.mesh)
        half = context + (blocks * subject.block) // 2
        read = -(-half // PART) * PART if on_cpu else window
        sized = dataclasses.replace(config.llm, vocab_size=abstract.head.output.shape[0])
        operations = subject.block * llm_flops(sized, count, count, count * half)
        moved = subject.block * abstract.ideal_bytes(read)
        sizes, amount = f"{count} slots, {read} tokens read, {subject.dtype}", count * subject.block
        more["slots"] = count
        compiling = bench.compiler.seconds - before
        yield measured("decode", sizes, "tokens", amount, times, subject.dtype, operations, moved, compiling, more)
        del engine, decoding, sides  # its slots, before those of the next


class _Decoding:
    """An engine whose slots are all at work."""

    def __init__(self, engine: Engine, prompts: Int[np.ndarray, "slots time"]):
        self._engine, self._updates = engine, list[Update]()
        self._tickets = []
        for ids in prompts.tolist():
            prompt = Prompt(tuple(ids), "first_semantic", (0,))
            limit = engine.new_tokens(prompt, engine.room(prompt))
            self._tickets.append(engine.submit(Job(prompt, limit, greedy=True)))

    def run(self, blocks: int) -> None:
        """Computes so many blocks; where the host is behind, what it waits for is the block before."""
        for _ in range(blocks):
            self._updates += self._engine.turn()

    def tokens(self) -> list[Int[np.ndarray, " tokens"]]:
        """Returns the tokens that each slot has chosen so far, as the host knows them."""
        own: dict[int, list[np.ndarray]] = {ticket: [] for ticket in self._tickets}
        for update in self._updates:
            own[update.ticket].append(update.tokens)
        return [np.concatenate(own[ticket]) for ticket in self._tickets]


def signal_to_noise(exact: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."]) -> float:
    """Returns how far a waveform is from the exact one, dB."""
    noise = np.sum((exact - other).astype(np.float64) ** 2)
    return float(10 * np.log10(np.sum(exact.astype(np.float64) ** 2) / max(noise, 1e-30)))


def _prompts(subject: Subject, rows: int, length: int) -> Int[np.ndarray, "rows length"]:
    """Returns prompts of random speech tokens."""
    return np.random.default_rng(2).choice(subject.tokenizer.semantic_ids, (rows, length)).astype(np.int32)


def _head(config: SparkConfig, params: Any, ids: Int[np.ndarray, " rows"], dtype: str) -> Head:
    embedding = params["embed"]["embedding"][ids].astype(dtype)
    output = embedding if config.llm.tie_word_embeddings else params["head"][:, ids].T.astype(dtype)
    return Head(embedding, output)


def _repeat(function: Any) -> Side:
    """Returns what calls a function so many times and waits for the last result."""

    def run(count: int) -> None:
        for _ in range(count):
            result = function()
        jax.block_until_ready(result)

    return run
