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
