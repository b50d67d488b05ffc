"""The engine: an answer depends on its own job alone; nothing compiles after the warm-up; little comes to the host."""

import dataclasses
import math
import random
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny
from jax.extend.core import jaxprs_in_params

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.inference import placement
from spark_jax.inference.engine import Engine, EngineSettings, Job
from spark_jax.inference.sampling import Sampling, warp
from spark_jax.qwen2.model import Qwen2
from spark_jax.text.grammar import build_grammar
from spark_jax.text.prompt import cloning_prompt, creation_prompt
from spark_jax.text.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer("bytes", semantic_codes=64, global_codes=64)
MODEL = Qwen2(tiny().llm)
GLOBAL = [5, 60, 0, 33]
SETTINGS = EngineSettings(slots=4, block=4, capacity=256, prompt_rows=2, max_top_k=128, behind=1)  # as on accelerators


@pytest.fixture(scope="module")
def params():
    made = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    # At the usual scale random logits are so flat that every prompt gets the same answer.
    return jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim > 2 else leaf, nn.meta.unbox(made)["params"])


def make(params, settings=SETTINGS, model=MODEL, **options):
    return Engine(model, params, TOKENIZER, 4, max_semantic_tokens=3000, settings=settings, **options)


@pytest.fixture(scope="module")
def engine(params):
    return make(params)


def jobs(count, seed=0):
    """Mixed jobs: cloned and made-up voices, short and long, greedy and sampled in many ways."""
    choose = random.Random(seed)
    made = []
    for number in range(count):
        text = "".join(choose.choices("abcdefgh ,.", k=choose.choice([3, 20, 50])))
        clone = choose.random() < 0.6
        prompt = (
            cloning_prompt(TOKENIZER, text + ".", GLOBAL) if clone else creation_prompt(TOKENIZER, text + ".", 1, 2, 3)
        )
        made.append(
            Job(
                prompt,
                limit=choose.randint(14, 60),
                seed=choose.randrange(2**32),
                temperature=choose.choice([0.8, 1.3, 20.0]),
                top_p=choose.choice([0.5, 0.95, 1.0]),
                top_k=choose.choice([1, 5, 50, 128]),
                greedy=number % 7 == 0,
            )
        )
    return made


def answer(generation):
    return (
        generation.semantic_ids.tolist(),
        generation.global_ids.tolist(),
        generation.pitch_value,
        generation.reached_limit,
        generation.new_tokens,
    )


def run(engine, chosen, arrivals=None):
    """Answers jobs that arrive at random, or all at once; returns them in their order."""
    waiting, numbers, found, streamed = list(enumerate(chosen)), {}, {}, {}
    while waiting or engine.busy:
        arriving = len(waiting) if arrivals is None else arrivals.choice([0, 0, 1, 2])
        for number, job in waiting[:arriving]:
            numbers[engine.submit(job)] = number
        del waiting[:arriving]
        for update in engine.turn():
            streamed.setdefault(update.ticket, []).extend(update.tokens)
            if update.generation is not None:
                found[numbers[update.ticket]] = answer(update.generation)
                assert len(streamed[update.ticket]) == update.generation.new_tokens
    return [found[number] for number in range(len(chosen))]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.extended)])
def test_an_answer_depends_on_its_job_alone(params, dtype):
    engine = make(params, model=Qwen2(MODEL.config, jnp.dtype(dtype)))
    chosen = jobs(14)
    alone = [run(engine, [job])[0] for job in chosen]
    assert len({str(found) for found in alone}) == len(chosen)
    assert run(engine, chosen) == alone
    for seed in range(6):
        arrivals = random.Random(seed)
        order = arrivals.sample(range(len(chosen)), len(chosen))
        found = run(engine, [chosen[number] for number in order], arrivals)
        assert found == [alone[number] for number in order]


def compilations():
    """A list that grows with each program that XLA compiles from now on."""
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: found.append(event) if "backend_compile" in event else None
    )
    return found


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_compiles_after_the_warm_up(params, count):
    engine = make(params)
    engine.warmup()
    programs = engine._read._cache_size() + sum(block._cache_size() for block in engine._blocks.values())
    assert programs == len(engine._prefills) + len(engine._blocks)
    compiled = compilations()
    run(engine, jobs(count, seed=2), random.Random(0))
    assert compiled == []


def test_only_codes_and_flags_come_to_the_host(params, monkeypatch):
    """On accelerators the guard refuses everything else; on CPUs it has no effect, so that values read are counted."""
    engine = make(params)
    run(engine, jobs(3))
    array = type(jnp.zeros(1))
    shapes, value = [], array._value

    def counted(self):
        shapes.append(self.shape)
        return value.fget(self)

    monkeypatch.setattr(array, "_value", property(counted))
    first = engine._scheduler._blocks
    with jax.transfer_guard_device_to_host("disallow"):
        run(engine, jobs(12, seed=3))
    blocks = engine._scheduler._blocks - first
    size = engine.settings
    assert blocks > 10 and sorted(shapes) == sorted([(size.slots, size.block + 1), (size.slots,)] * blocks)
    int(jnp.ones(()))
    assert shapes[-1] == ()  # other reads would have been seen


@pytest.mark.parametrize("devices", [1, 2])
def test_a_block_writes_its_tokens_into_the_cache_in_place(params, devices):
    """Of the cache's arrays there are no other instructions than one write to each, whose memory is the input's."""
    mesh = sharding.make_mesh(data=devices)
    placed = jax.device_put(params, sharding.replicated(mesh))
    engine = make(placed, mesh=mesh)
    [block] = engine._blocks.values()
    program = block.lower(engine._decoding_params, engine._head, engine._grammar, engine._state).compile()
    text, cache = program.as_text(), engine._state.cache
    assert len(cache.near) == (MODEL.config.num_hidden_layers if devices == 1 else 0)  # both forms
    arrays = [leaf for leaf in jax.tree.leaves(cache) if leaf.ndim > 1]
    shapes = [leaf.sharding.shard_shape(leaf.shape) for leaf in arrays]
    for shape in set(shapes):
        written = (
            re.escape(f"f32[{','.join(map(str, shape))}]") + r"\S* (?!parameter|get-tuple-element|bitcast)([\w-]+)\("
        )
        entry = text[text.index("\nENTRY") :]
        assert re.findall(written, entry) == ["fusion"] * shapes.count(shape)
        rest = text[: text.index("\nENTRY")]
        assert set(re.findall(written, rest)) <= {"scatter", "dynamic-update-slice", "select"}  # inside these fusions
    assert program.memory_analysis().alias_size_in_bytes >= sum(
        leaf.dtype.itemsize * math.prod(shape) for leaf, shape in zip(arrays, shapes, strict=True)
    )


def scores_of(params, job, said):
    """What the model and the noise give each token after `said`, by a plain forward pass; the largest is taken."""
    ids = np.array([*job.prompt.ids, *said])
    padded = np.zeros((1, 192), np.int32)  # one program
    padded[0, : len(ids)] = ids
    logits = plain_logits(params, padded, len(ids) - 1)
    grammar = build_grammar(TOKENIZER, 4, MODEL.config.vocab_size)
    stage = jnp.array([grammar.index(job.prompt.start)])
    for token in said:
        stage = grammar.advance(stage, jnp.array([token]))
    logits = jnp.where(grammar.mask(stage), logits, -jnp.inf)
    if job.greedy:
        return logits[0]
    own = Sampling(*(jnp.array([value]) for value in (job.temperature, job.top_p, job.top_k, False)))
    warped, candidates = warp(own, logits, 128)
    noise = jax.random.gumbel(jax.random.fold_in(jax.random.key(job.seed), len(said)), warped.shape[1:])
    return jnp.full(logits.shape[1], -jnp.inf).at[candidates[0]].set(warped[0] + noise)


@jax.jit
def plain_logits(params, ids, last):
    hidden, _ = MODEL.apply({"params": params}, ids)
    return MODEL.apply({"params": params}, jax.lax.dynamic_slice_in_dim(hidden, last, 1, axis=1)[:, 0], method="logits")


def perturbed_gap(params, job, tokens, others):
    """How near the choice is at which two answers part: in units of the scores that noise is added to."""
    step = next(i for i, (ours, theirs) in enumerate(zip(tokens, others, strict=False)) if ours != theirs)
    values = scores_of(params, job, tokens[:step])
    return abs(float(values[tokens[step]] - values[others[step]]))


def test_each_token_is_the_plain_models(params, engine):
    """Without cache, slots, blocks, small head and rows: the whole sequence is read for each token."""
    chosen = jobs(8, seed=1)
    checked = 0
    for job, tokens in zip(chosen, tokens_of(engine, chosen), strict=True):
        for step in range(0, len(tokens), 3):
            values = scores_of(params, job, tokens[:step])
            checked += 1
            assert float(jnp.max(values) - values[tokens[step]]) < 1e-3
    assert checked > 60


def test_products_in_float32_are_float32_on_every_device(engine):
    """By default they would be TF32 on GPUs, bfloat16 on TPUs."""

    def precisions(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation.params["precision"]
            for body in jaxprs_in_params(equation.params):
                yield from precisions(body)

    [block] = engine._blocks.values()
    traced = block.trace(engine._decoding_params, engine._head, engine._grammar, engine._state)
    found = list(precisions(traced.jaxpr.jaxpr))
    assert len(found) > 10 and set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


def tokens_of(engine, chosen):
    said, found = {}, {engine.submit(job): number for number, job in enumerate(chosen)}
    while engine.busy:
        for update in engine.turn():
            said.setdefault(found[update.ticket], []).extend(update.tokens.tolist())
    return [said[number] for number in range(len(chosen))]


@pytest.mark.extended
def test_numbers_of_slots_and_devices_part_answers_at_near_ties_only(params, record_property):
    chosen = jobs(100, seed=4)
    expected = tokens_of(make(params), chosen)
    mesh = sharding.make_mesh(data=8)
    others = [
        make(params, EngineSettings(slots=1, block=4, capacity=256, max_top_k=128)),  # the host is not behind
        make(params, EngineSettings(slots=64, block=8, capacity=256, max_top_k=128)),
        make(
            jax.device_put(params, sharding.replicated(mesh)),
            EngineSettings(slots=8, block=4, capacity=256, max_top_k=128),
            mesh=mesh,
        ),
    ]
    parted = 0
    for engine in others:
        for job, ours, theirs in zip(chosen, expected, tokens_of(engine, chosen), strict=True):
            if ours != theirs:
                parted += 1
                assert perturbed_gap(params, job, ours, theirs) < 1e-3
    record_property("answers that part at near-ties", f"{parted} of {len(chosen) * len(others)}")
    assert parted <= 6


def test_the_model_divided_by_its_heads_answers_as_on_one_device(params, engine):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    placed = jax.device_put(params, sharding.tree_shardings(mesh, boxed)["params"])
    chosen = jobs(8, seed=5)
    assert run(make(placed, mesh=mesh), chosen) == run(engine, chosen)


@pytest.mark.extended
def test_layers_that_a_block_takes_apart_answer_alike(params, engine, monkeypatch):
    """The programs of GPUs."""
    monkeypatch.setattr(placement, "on_gpu", lambda mesh: True)
    mesh, chosen = sharding.make_mesh(data=2), jobs(8, seed=5)
    assert run(make(jax.device_put(params, sharding.replicated(mesh)), mesh=mesh), chosen) == run(engine, chosen)


def test_a_client_that_leaves_frees_its_slot(engine):
    chosen = jobs(9, seed=6)
    alone = [run(engine, [job])[0] for job in chosen]
    tickets = [engine.submit(job) for job in chosen]
    engine.turn()
    leaving = {tickets[0], tickets[2], tickets[8]}  # two of them in slots
    assert engine.load == (5, 4)
    assert all(engine.cancel(ticket) for ticket in leaving)
    assert engine.load == (4, 2)
    engine.turn()
    assert engine.load == (2, 4)
    found = {}
    while engine.busy:
        found |= {update.ticket: answer(update.generation) for update in engine.turn() if update.generation}
    assert found == {ticket: own for ticket, own in zip(tickets, alone, strict=True) if ticket not in leaving}
    assert not engine.cancel(tickets[1]) and engine.load == (0, 0)


def test_the_end_is_told_from_the_limit(params):
    # With a zero norm all logits are equal, so greedy takes the lowest id: <|im_end|>, as soon as it may.
    engine = make({**params, "norm": {"scale": jnp.zeros_like(params["norm"]["scale"])}})
    prompt = cloning_prompt(TOKENIZER, "Stop.", GLOBAL)
    found = run(engine, [Job(prompt, limit, greedy=True) for limit in (3, 2, 200)])
    assert [(len(semantic), cut, count) for semantic, _, _, cut, count in found] == [
        (1, False, 3),
        (1, True, 2),
        (1, False, 3),
    ]
    continued = cloning_prompt(TOKENIZER, "Stop.", GLOBAL, "Start.", [1, 2])
    assert run(engine, [Job(continued, 1, greedy=True)])[0][3:] == (True, 1)  # its first token is its last


def test_bad_jobs_and_settings_are_named(engine):
    prompt = cloning_prompt(TOKENIZER, "Hello.", GLOBAL)
    long = cloning_prompt(TOKENIZER, "x" * 300, GLOBAL)
    room = engine.room(prompt)
    assert room == 256 - 4 - len(prompt.ids) - 2
    assert engine.room(long) == 0
    for job, message in (
        (Job(long, 20), "leaves no room for an answer"),
        (Job(prompt, room + 3), f"expected 2 to {room + 2} for this prompt"),
        (Job(prompt, 1), "the limit is 1 new tokens, expected 2"),
        (Job(prompt, 20, top_k=129), "top_k is 129, expected at most 128"),
    ):
        with pytest.raises(SparkError, match=message):
            engine.submit(job)
    assert not engine.busy
    for options, message in (
        ({"slots": 0}, "slots is 0, expected 1 or more"),
        ({"capacity": 1000}, "capacity is 1000, expected a power of two from 128"),
    ):
        with pytest.raises(SparkError, match=message):
            EngineSettings(**options)
    with pytest.raises(SparkError, match="slots is 4, expected a multiple of the 8 devices"):
        make(engine._params, mesh=sharding.make_mesh(data=8))


WIDE = dataclasses.replace(SETTINGS, capacity=512)  # windows of 128, 256 and 512


@pytest.mark.gpu(place=8)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_an_answer_depends_on_its_job_alone(gpu, params, dtype):
    engine = make(params, WIDE, Qwen2(MODEL.config, jnp.dtype(dtype)))
    chosen = [dataclasses.replace(job, limit=job.limit + 40 * (number % 6)) for number, job in enumerate(jobs(8))]
    alone = [run(engine, [job])[0] for job in chosen]
    assert len({str(found) for found in alone}) == len(chosen)
    together, later = run(engine, chosen), run(engine, chosen, random.Random(0))
    parted = [number for number, own in enumerate(alone) if not own == together[number] == later[number]]
    assert parted == [], f"{len(parted)} of {len(chosen)} jobs are answered otherwise in company, in {dtype}"


@pytest.mark.gpu(place=5)
def test_a_gpu_answers_as_a_cpu_but_at_near_ties(gpu, cpu, params):
    """In float32, at full precision whatever the default is."""
    chosen = jobs(20, seed=4)
    expected = tokens_of(make(jax.device_put(params, sharding.replicated(cpu)), mesh=cpu), chosen)
    parted = []
    for job, ours, theirs in zip(chosen, tokens_of(make(params), chosen), expected, strict=True):
        if ours != theirs:
            with jax.default_matmul_precision("highest"):
                parted.append(perturbed_gap(params, job, ours, theirs))
    assert len(parted) <= 1 and max(parted, default=0) < 1e-3, parted
