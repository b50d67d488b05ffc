"""Decoding over slots: the logits of the plain cache, whatever the window, the slot and the block; sharded as alone.

With stacked layers; with layers apart and near caches, as on one CPU; with layers that a block takes apart, as on GPUs.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.config import Qwen2Config
from spark_jax.qwen2 import decoding, near_cache, slot_cache
from spark_jax.qwen2.cache import init_cache
from spark_jax.qwen2.model import Qwen2

CAPACITY, BLOCK, SLOTS = 512, 4, 4
QWEN3 = Qwen2Config(
    vocab_size=80,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=32,
    head_dim=8,
    attention_bias=False,
    qk_norm=True,
)


def made(sizes, dtype=jnp.float32):
    model = Qwen2(sizes, dtype)
    return model, nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]


def blocks(model, window, params, cache, ids, apart=False):
    """Feeds each slot the tokens of its row, in blocks; returns the logits and the cache after them."""
    added = jnp.full(ids.shape[0], BLOCK, jnp.int32)
    table = params["embed"]["embedding"]

    def block(cache, ids):
        empty, decode = decoding.begin(model, params, cache, BLOCK, jnp.max(cache.lengths), window, apart)

        def step(recent, inputs):
            offset, tokens = inputs
            hidden, recent = decode(table[tokens][:, None], recent, offset)
            return recent, jnp.einsum("sd,vd->sv", hidden[:, 0].astype(jnp.float32), table)

        steps = jnp.arange(BLOCK, dtype=jnp.int32), ids
        recent, logits = jax.lax.scan(step, empty, steps)
        return slot_cache.merge(cache, recent, added), logits

    cache, logits = jax.lax.scan(block, cache, jnp.reshape(jnp.asarray(ids).T, (-1, BLOCK, len(ids))))
    return logits.reshape(ids.shape[1], len(ids), -1).swapaxes(0, 1), cache


def filled(model, params, prompts, lengths, slots, count=SLOTS, near=0):
    """Prompts of these lengths in these slots of an empty cache."""
    rows, time = prompts.shape
    valid = jnp.arange(time) < lengths[:, None]
    empty = init_cache(model.config, rows, time, model.dtype)
    _, cache = model.apply({"params": params}, prompts, segment_ids=valid.astype(jnp.int32), cache=empty)
    into = slot_cache.init_slots(model.config, count, CAPACITY, model.dtype, near)
    return slot_cache.insert(into, slots, cache.keys, cache.values, cache.lengths), cache


def draw(vocabulary, lengths=(40, 7, 23)):
    rng = np.random.default_rng(0)
    return rng.integers(vocabulary, size=(3, max(lengths))), np.array(lengths), rng.integers(vocabulary, size=(3, 8))


def apart(params):
    return decoding.take_apart(params, sharding.make_mesh(data=1))


@pytest.mark.parametrize(
    "sizes", [pytest.param(tiny().llm, id="qwen2"), pytest.param(QWEN3, id="qwen3", marks=pytest.mark.extended)]
)
@pytest.mark.parametrize(("near", "by_block"), [(0, False), (BLOCK, False), (0, True)])
def test_logits_are_those_of_the_plain_cache(sizes, near, by_block):
    """Three slots: across the end of the near places, in their middle, and behind them."""
    model, params = made(sizes)
    prompts, lengths, said = draw(sizes.vocab_size, (near_cache.PLACES - 2, 7, near_cache.PLACES + 9))
    slots = np.array([2, 0, 3])
    cache, plain = jax.jit(partial(filled, model, near=near))(params, prompts, lengths, slots)
    said_by_slot = np.zeros((SLOTS, said.shape[1]), np.int32)
    said_by_slot[slots] = said
    own = apart(params) if near else params
    found, after = jax.jit(partial(blocks, model, 512, apart=by_block))(own, cache, said_by_slot)

    @jax.jit
    def expected(params, plain, said):
        room = [(0, 0)] * 3 + [(0, said.shape[1]), (0, 0)]
        plain = plain.replace(keys=jnp.pad(plain.keys, room), values=jnp.pad(plain.values, room))
        logits = []
        for step in range(said.shape[1]):
            hidden, plain = model.apply({"params": params}, said[:, step : step + 1], cache=plain)
            logits.append(model.apply({"params": params}, hidden[:, 0], method=Qwen2.logits))
        return jnp.stack(logits, axis=1), plain

    logits, plain = expected(params, plain, said)
    np.testing.assert_allclose(found[slots], logits, atol=2e-5)
    for row, slot in enumerate(slots):
        length = lengths[row] + said.shape[1]
        assert after.lengths[slot] == length
        kept = np.asarray(after.keys)[:, slot, :, :, :length].swapaxes(-1, -2)
        np.testing.assert_allclose(kept, plain.keys[:, row, :, :length], atol=2e-5)


def test_layers_apart_lie_in_the_same_memory():
    params = made(tiny().llm)[1]
    for number, layer in enumerate(apart(params)["layers"]):
        for leaf, whole in zip(jax.tree.leaves(layer), jax.tree.leaves(params["layers"]), strict=True):
            np.testing.assert_array_equal(leaf, whole[number])
            offset = leaf.addressable_shards[0].data.unsafe_buffer_pointer() - whole.unsafe_buffer_pointer()
            assert offset == number * leaf.nbytes or leaf.nbytes % 64  # where it is not aligned, it is a copy


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.extended)])
@pytest.mark.parametrize("near", [0, BLOCK])
def test_windows_and_slots_do_not_change_a_bit(dtype, near):
    model, params = made(tiny().llm, jnp.dtype(dtype))
    prompts, lengths, said = draw(model.config.vocab_size)
    fill = jax.jit(partial(filled, model, near=near))
    run = {window: jax.jit(partial(blocks, model, window)) for window in (128, 256, 512)}
    own = apart(params) if near else params
    rng = np.random.default_rng(1)
    results = []
    for window, slots in ((128, [0, 1, 2]), (256, [0, 1, 2]), (512, [0, 1, 2]), (128, [3, 1, 0]), (256, [1, 3, 2])):
        cache, _ = fill(params, prompts, lengths, np.array(slots))
        free = np.array([slot for slot in range(SLOTS) if slot not in slots])
        cache = cache.replace(lengths=cache.lengths.at[free].set(window - said.shape[1]))
        said_by_slot = rng.integers(64, size=(SLOTS, said.shape[1]))  # neighbors say anything
        said_by_slot[slots] = said
        logits, _ = run[512 if near else window](own, cache, said_by_slot)
        results.append(np.asarray(logits)[slots])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.extended
def test_numbers_of_slots_change_rounding_only():
    """A sequence alone, in 8 and in 64 slots."""
    model, params = made(tiny().llm)
    prompts, lengths, said = draw(model.config.vocab_size)
    found = []
    for count in (1, 8, 64):
        cache, _ = jax.jit(partial(filled, model, count=count))(params, prompts[:1], lengths[:1], np.array([count - 1]))
        said_by_slot = np.repeat(said[1:2], count, axis=0)
        said_by_slot[-1] = said[0]
        logits, _ = jax.jit(partial(blocks, model, 128))(params, cache, said_by_slot)
        found.append(np.asarray(logits)[-1])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-5)


def test_slots_without_a_new_token_keep_all_and_the_end_is_not_overwritten():
    sizes = tiny().llm
    cache = slot_cache.init_slots(sizes, SLOTS, 8)
    cache = cache.replace(keys=cache.keys + 1, lengths=jnp.array([0, 4, 6, 8]))
    recent = tuple(buffer + 2 for buffer in slot_cache.init_recent(cache, BLOCK))
    merged = jax.jit(slot_cache.merge)(cache, recent, jnp.array([0, 3, 2, 0]))
    places = np.asarray(merged.keys)[0, :, 0, 0]
    assert merged.lengths.tolist() == [0, 7, 8, 8]
    assert places.tolist() == [[1] * 8, [1] * 4 + [2] * 4, [1] * 8, [1] * 8]  # slot 2 has no room for a block: dropped


def test_rows_that_aim_nowhere_are_dropped():
    sizes = tiny().llm
    cache = slot_cache.init_slots(sizes, SLOTS, 8)
    rows = jnp.ones((sizes.num_hidden_layers, 3, sizes.num_key_value_heads, 2, sizes.head_dim))
    found = jax.jit(slot_cache.insert)(cache, jnp.array([4, 2, 4]), rows, rows, jnp.array([5, 2, 5]))
    assert found.lengths.tolist() == [0, 0, 2, 0]
    assert np.asarray(found.values)[0, :, 0, 0].tolist() == [[0] * 8, [0] * 8, [1, 1] + [0] * 6, [0] * 8]


@pytest.mark.extended
@pytest.mark.parametrize("by_block", [False, True])
def test_divided_over_devices_as_on_one(by_block):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    model, params = made(tiny().llm)
    prompts, lengths, said = draw(model.config.vocab_size)
    slots = np.array([2, 0, 3])
    said_by_slot = np.zeros((SLOTS, said.shape[1]), np.int32)
    said_by_slot[slots] = said
    cache, _ = jax.jit(partial(filled, model))(params, prompts, lengths, slots)
    expected, _ = jax.jit(partial(blocks, model, 128))(params, cache, said_by_slot)
    fill = jax.jit(sharding.under_mesh(partial(filled, model), mesh))
    run = jax.jit(sharding.under_mesh(partial(blocks, model, 128, apart=by_block), mesh))
    where = jax.sharding.NamedSharding(mesh, sharding.spec(mesh, *slot_cache.KEY_AXES))
    cache, _ = fill(
        jax.device_put(params, sharding.replicated(mesh)),
        np.repeat(prompts, [1, 1, 2], 0),
        np.repeat(lengths, [1, 1, 2]),
        np.array([2, 0, 3, 4]),
    )
    cache = cache.replace(keys=jax.device_put(cache.keys, where), values=jax.device_put(cache.values, where))
    found, after = run(jax.device_put(params, sharding.replicated(mesh)), cache, said_by_slot)
    np.testing.assert_allclose(np.asarray(found)[slots], np.asarray(expected)[slots], atol=2e-5)
    assert after.lengths.tolist() == [lengths[1] + 8, 8, lengths[0] + 8, lengths[2] + 8]
