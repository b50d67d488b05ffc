"""Traffic of compiled programs: of programs whose collectives are known, and of the ways HLO writes things."""

import jax
import jax.numpy as jnp
import pytest

from spark_jax import sharding
from spark_jax.performance import hlo


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def test_a_loops_collectives_count_as_often_as_it_turns():
    mesh = sharding.make_mesh(2, 4, 1)

    def place(*axes):
        return jax.sharding.NamedSharding(mesh, jax.P(*axes))

    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=place(("data", "fsdp")))
    kernels = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=place(None, "fsdp"))

    def loss(kernels, x):
        def layer(x, kernel):
            x = jax.lax.with_sharding_constraint(
                jnp.tanh(x @ jax.lax.with_sharding_constraint(kernel, place())), place(("data", "fsdp"))
            )
            return x, None

        return jnp.sum(jax.lax.scan(layer, x, kernels)[0])

    moved = hlo.traffic(compiled(loss, kernels, x))
    gathers = moved.collectives["all-gather"]
    assert gathers.count == 5 and moved.unknown_loops == 0
    assert gathers.operand_bytes == 5 * 64 * 16 * 4  # a quarter of each kernel
    assert gathers.link_bytes == 3 * gathers.operand_bytes
    # Kernels are read, gathered, turned around and read again, layer by layer.
    assert 5 * 64 * 64 * 4 < moved.memory_bytes < 40 * 64 * 64 * 4


def test_an_update_in_place_moves_what_it_updates():
    def fill(buffer):
        def body(i, buffer):
            return jax.lax.dynamic_update_index_in_dim(buffer, jnp.full((1000,), i, jnp.float32), i, 0)

        return jax.lax.fori_loop(0, 100, body, buffer)

    text = jax.jit(fill, donate_argnums=0).lower(jax.ShapeDtypeStruct((100, 1000), jnp.float32)).compile().as_text()
    moved = hlo.traffic(text)
    assert moved.memory_bytes < 4 * 100 * 1000 * 4  # not 100 times the buffer
    assert not moved.collectives


def test_a_loop_of_unknown_length_is_told():
    def grow(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100.0, lambda x: x * 2.0, x)

    assert hlo.traffic(compiled(grow, jax.ShapeDtypeStruct((16,), jnp.float32))).unknown_loops == 1


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true", 4),
        ("replica_groups=[4,8]<=[32], dimensions={0}", 8),
        ("replica_groups=[8,2]<=[2,2,4]T(2,1,0), dimensions={0}", 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=4] {'axis_2'}, use_global_device_ids=true", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=3], device_ids=([2,3]T(1,0)) {'axis_0','axis_1'}, to_apply=%a", 6),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0':(2)4}, dimensions={0}", 4),
    ],
)
def test_groups_are_written_in_several_ways(attributes, size):
    assert hlo.group_size(attributes) == size


# As the TPU compiler writes: layouts with tilings, an all-reduce fused with a slice, VMEM as memory space 1.
TPU = """HloModule jit_step, is_scheduled=true

%add.1 (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[]{:T(256)} parameter(0)
  %y = bf16[]{:T(256)} parameter(1)
  ROOT %add.2 = bf16[]{:T(256)} add(%x, %y)
}

%all-reduce-scatter.2 (input.6: bf16[8,128]) -> bf16[2,128] {
  %input.6 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[8,128]{1,0:T(8,128)(2,1)} all-reduce(%input.6), replica_groups=[1,4]<=[4], to_apply=%add.1
  %zero = u32[] constant(0)
  ROOT %dynamic-slice.3 = bf16[2,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %zero, %zero)
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%p), index=0
  %value = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %slice-start = ((bf16[8,128]{1,0}), bf16[4,128]{1,0:S(1)}, u32[]) slice-start(%value), slice={[0:4], [0:128]}
  %slice-done = bf16[4,128]{1,0:S(1)} slice-done(%slice-start)
  %scattered = bf16[2,128]{1,0:T(8,128)(2,1)S(1)} fusion(%value), kind=kCustom, calls=%all-reduce-scatter.2
  %gathered = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather(%scattered), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %out = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%turn, %gathered)
}

%condition (p.1: (s32[], bf16[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%turn.1, %limit), direction=LT
}

ENTRY %main (a: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %a = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) while(%a), condition=%condition, body=%body
}
"""


def test_a_program_of_the_tpu_compiler():
    moved = hlo.traffic(TPU)
    size = 8 * 128 * 2
    assert moved.unknown_loops == 0
    assert moved.collectives == {
        "reduce-scatter": hlo.Collective(24, 24 * size, 24 * size * 3 / 4),
        "all-gather": hlo.Collective(24, 24 * size / 4, 24 * size / 4 * 3),
    }
    # The scattered part stays in VMEM, and half of the value is fetched there.
    assert moved.memory_bytes == pytest.approx(24 * (size + size + size / 2), rel=0.01)


# A loop of 24 turns as the TPU compiler writes a decode step: a product whose kernel is sliced out of the stacked ones
# in a fusion within the fusion, and an update in place there too.
NESTED = """HloModule jit_decode, is_scheduled=true

%pick (stacked: bf16[24,64,128], n: s32[]) -> bf16[64,128] {
  %stacked = bf16[24,64,128]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,64,128]{2,1,0} dynamic-slice(%stacked, %n, %zero, %zero), dynamic_slice_sizes={1,64,128}
  ROOT %kernel = bf16[64,128]{1,0} bitcast(%one)
}

%put (buffer: bf16[24,8,128], row: bf16[1,8,128], k: s32[]) -> bf16[24,8,128] {
  %buffer = bf16[24,8,128]{2,1,0} parameter(0)
  %row = bf16[1,8,128]{2,1,0} parameter(1)
  %k = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %new = bf16[24,8,128]{2,1,0} dynamic-update-slice(%buffer, %row, %k, %none, %none)
}

%product (x: bf16[8,64], all: bf16[24,64,128], l: s32[], cache: bf16[24,8,128]) -> (bf16[8,128], bf16[24,8,128]) {
  %x = bf16[8,64]{1,0} parameter(0)
  %all = bf16[24,64,128]{2,1,0} parameter(1)
  %l = s32[] parameter(2)
  %cache = bf16[24,8,128]{2,1,0} parameter(3)
  %inner = bf16[64,128]{1,0} fusion(%all, %l), kind=kLoop, calls=%pick
  %y = bf16[8,128]{1,0} convolution(%x, %inner), dim_labels=bf_io->bf
  %again = bf16[1,8,128]{2,1,0} bitcast(%y)
  %filled = bf16[24,8,128]{2,1,0} fusion(%cache, %again, %l), kind=kLoop, calls=%put
  ROOT %both = (bf16[8,128]{1,0}, bf16[24,8,128]{2,1,0}) tuple(%y, %filled)
}

%turn (p: (s32[], bf16[24,64,128], bf16[24,8,128], bf16[8,64])) -> (s32[], …) {
  %p = (s32[], bf16[24,64,128]{2,1,0}, bf16[24,8,128]{2,1,0}, bf16[8,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %kernels = bf16[24,64,128]{2,1,0} get-tuple-element(%p), index=1
  %held = bf16[24,8,128]{2,1,0} get-tuple-element(%p), index=2
  %input = bf16[8,64]{1,0} get-tuple-element(%p), index=3
  %made = (bf16[8,128]{1,0:S(1)}, bf16[24,8,128]{2,1,0}) fusion(%input, %kernels, %i, %held), calls=%product
  %kept = bf16[24,8,128]{2,1,0} get-tuple-element(%made), index=1
  ROOT %next = (s32[], bf16[24,64,128], bf16[24,8,128], bf16[8,64]) tuple(%i, %kernels, %kept, %input)
}

%until (q: (s32[], bf16[24,64,128], bf16[24,8,128], bf16[8,64])) -> pred[] {
  %q = (s32[], bf16[24,64,128]{2,1,0}, bf16[24,8,128]{2,1,0}, bf16[8,64]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %most = s32[] constant(24)
  ROOT %less = pred[] compare(%j, %most), direction=LT
}

ENTRY %main (a: (s32[], bf16[24,64,128], bf16[24,8,128], bf16[8,64])) -> (s32[], …) {
  %a = (s32[], bf16[24,64,128]{2,1,0}, bf16[24,8,128]{2,1,0}, bf16[8,64]{1,0}) parameter(0)
  ROOT %while = (s32[], bf16[24,64,128], bf16[24,8,128], bf16[8,64]) while(%a), condition=%until, body=%turn
}
"""
COPIED = "%kept = bf16[24,8,128]{2,1,0} copy(%gte)"


def test_bytes_follow_slices_into_nested_fusions():
    """A turn reads its input, one kernel of 24 and the turn's number, and writes a row of the cache; y is in VMEM."""
    kernel, row, given, number = 2 * 64 * 128, 2 * 8 * 128, 2 * 8 * 64, 4
    moved = hlo.traffic(NESTED)
    assert moved.unknown_loops == 0
    assert moved.memory_bytes == 24 * (kernel + row + given + number)


def test_an_array_that_is_only_updated_is_not_written_whole():
    cache = 2 * 24 * 8 * 128
    assert hlo.large_writes(NESTED, cache) == []
    assert [text.split()[0] for text in hlo.large_writes(NESTED, cache / 24)] == ["made"]
    copied = NESTED.replace("%kept = bf16[24,8,128]{2,1,0} get-tuple-element(%made), index=1", COPIED)
    assert hlo.large_writes(copied, cache) == ["kept bf16[24,8,128]{2,1,0}"]


def test_a_step_over_stacked_kernels_reads_each_once():
    kernels = jax.ShapeDtypeStruct((6, 256, 256), jnp.float32)
    x = jax.ShapeDtypeStruct((4, 256), jnp.float32)

    def steps(kernels, x):
        layer = lambda x, kernel: (jnp.tanh(x @ kernel), None)  # noqa: E731
        return jax.lax.fori_loop(0, 5, lambda _, x: jax.lax.scan(layer, x, kernels)[0], x)

    moved = hlo.traffic(compiled(steps, kernels, x))
    once = 5 * 6 * 256 * 256 * 4
    assert moved.unknown_loops == 0
    assert once <= moved.memory_bytes < 3.5 * once  # a CPU may copy a kernel out of the stack before it is used


COPY_OF_A_LAYER = """HloModule gpu

%slice (all: bf16[24,8,16], l: s32[]) -> bf16[1,8,16] {
  %all = bf16[24,8,16]{2,1,0} parameter(0)
  %l = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %one = bf16[1,8,16]{2,1,0} dynamic-slice(%all, %l, %zero, %zero), dynamic_slice_sizes={1,8,16}
}

ENTRY %main (a: bf16[24,8,16], b: s32[]) -> bf16[1,8,16] {
  %a = bf16[24,8,16]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %start = ((bf16[24,8,16]{2,1,0}, s32[]), bf16[1,8,16]{2,1,0}, u32[]) fusion-start(%a, %b), kind=kLoop, calls=%slice
  ROOT %done = bf16[1,8,16]{2,1,0} fusion-done(%start)
}
"""


def test_a_gpus_copy_beside_other_work_moves_a_slice():
    """Read and written once, with the number of the layer and a word of the copy's own."""
    assert hlo.traffic(COPY_OF_A_LAYER).memory_bytes == 2 * 2 * 8 * 16 + 4 + 4
