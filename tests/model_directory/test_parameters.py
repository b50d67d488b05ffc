"""Parameters read straight into a mesh, and of single parts."""

import math
import os
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory import manifest
from spark_jax.model_directory.parameters import PARTS, target_variables
from spark_jax.shared.pytree import flatten


@pytest.fixture(scope="module")
def alone(tiny_model_directory):
    return model_directory.load(tiny_model_directory).variables


@pytest.mark.extended
@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2}])
def test_a_mesh_gets_the_same_parameters_divided_as_the_table_says(tiny_model_directory, alone, sizes):
    mesh = sharding.make_mesh(**({"data": 1} | sizes))
    loaded = flatten(model_directory.load(tiny_model_directory, mesh=mesh).variables)
    # The table's word on each axis, from the models' own names, not from what `load` made of them.
    boxed = flatten_boxes(tiny())
    assert loaded.keys() == flatten(alone).keys() == boxed.keys()
    divided = 0
    for name, values in flatten(alone).items():
        np.testing.assert_array_equal(loaded[name], values, err_msg=name)
        shard = tuple(
            size // math.prod(mesh.shape[axis] for axis in axes)
            for size, axes in zip(values.shape, boxed[name], strict=True)
        )
        shards = loaded[name].addressable_shards
        assert len(shards) == mesh.size and {part.data.shape for part in shards} == {shard}, name
        divided += shard != values.shape
    assert divided > 100


def flatten_boxes(settings):
    """The mesh axes of every axis of every array: {name: ((axis, ...), ...)}."""
    from flax import linen as nn

    from spark_jax.bicodec.model import BiCodec
    from spark_jax.qwen2.model import Qwen2
    from spark_jax.wav2vec2.model import Wav2Vec2

    key = jax.random.key(0)
    samples = jnp.zeros((1, 4096))
    inits = {
        "bicodec": lambda: BiCodec(settings.bicodec).init(key, jnp.zeros((1, 8, 16)), samples, train=False),
        "wav2vec2": lambda: Wav2Vec2(settings.wav2vec2).init(key, samples),
        "llm": lambda: Qwen2(settings.llm).init(key, jnp.zeros((1, 2), jnp.int32)),
    }

    def axes(leaf):
        names = leaf.names if isinstance(leaf, nn.Partitioned) else (None,) * leaf.ndim
        targets = [sharding.RULES[name] if name else None for name in names]
        return [(target,) if isinstance(target, str) else (target or ()) for target in targets]

    found = {}
    for part, init in inits.items():
        tree = jax.eval_shape(init)
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
        for path, leaf in leaves:
            keys = [entry.key for entry in path if hasattr(entry, "key")]
            found["/".join([part, *keys])] = axes(leaf)
    return found


@pytest.mark.extended
def test_types_go_with_the_mesh(tiny_model_directory, alone):
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2)
    llm = model_directory.load(tiny_model_directory, llm_dtype=jnp.bfloat16, parts=("llm",), mesh=mesh).variables[
        "llm"
    ]["params"]
    table = llm["embed"]["embedding"]
    assert table.dtype == jnp.bfloat16 and table.addressable_shards[0].data.nbytes * 4 == table.nbytes
    np.testing.assert_array_equal(table, alone["llm"]["params"]["embed"]["embedding"].astype(jnp.bfloat16))
    assert llm["norm"]["scale"].dtype == jnp.float32


@pytest.mark.parametrize("parts", [("bicodec",), ("bicodec", "wav2vec2"), ("llm",), ()])
def test_only_the_parts_asked_for_are_read(tiny_model_directory, alone, parts):
    loaded = model_directory.load(tiny_model_directory, parts=parts)
    assert tuple(loaded.variables) == parts and loaded.config == tiny()
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, {part: alone[part] for part in parts})


def test_a_directory_of_the_codec_alone(tiny_model_directory, tmp_path, alone):
    """As `spark-jax convert --parts bicodec,wav2vec2` makes one: without LLM and tokenizer."""
    copy = shutil.copytree(tiny_model_directory, tmp_path / "model")
    shutil.rmtree(copy / "tokenizer")
    shutil.rmtree(copy / "params" / "llm")
    with pytest.raises(SparkError, match="incomplete model: .*params/llm/.* is missing"):
        model_directory.load(copy, parts=("bicodec",))
    manifest.write_manifest(copy)
    codec = model_directory.load(copy, parts=("bicodec", "wav2vec2")).variables
    jax.tree.map(np.testing.assert_array_equal, codec, {part: alone[part] for part in ("bicodec", "wav2vec2")})
    with pytest.raises(SparkError, match="holds no llm; expected a model of bicodec, wav2vec2, llm"):
        model_directory.load(copy)


def test_bad_requests(tiny_model_directory):
    with pytest.raises(SparkError, match="parts: 'codec' unknown, expected some of bicodec, wav2vec2, llm"):
        model_directory.load(tiny_model_directory, parts=("codec", "llm"))
    mesh = sharding.make_mesh(data=1, tensor=8)
    with pytest.raises(SparkError, match=r"sharding: .*'kv_heads' of 2 is not divisible by 8") as caught:
        model_directory.load(tiny_model_directory, mesh=mesh)
    message = str(caught.value)  # every array that does not fit, of every part, with its name
    assert all(f"{part}/params/" in message for part in PARTS) and "\n" not in message


HOST = """
import sys
import jax

port, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, index)
from pathlib import Path

from spark_jax import sharding
from spark_jax.model_directory import parts as part_files
from spark_jax.model_directory.parameters import target_variables
from spark_jax.config import Qwen2Config, SparkConfig

config = SparkConfig(llm=Qwen2Config(vocab_size=4096, hidden_size=512, num_hidden_layers=4, intermediate_size=2048,
                                     num_attention_heads=8, num_key_value_heads=2))
mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2)
wanted = target_variables(config, ("llm",), mesh=mesh)["llm"]
read = lambda: int(open("/proc/self/io").readline().split()[1])
before = read()
loaded = part_files.read_arrays(Path(folder), wanted)
print(read() - before, sum(s.data.nbytes for leaf in jax.tree.leaves(loaded) for s in leaf.addressable_shards),
      sum(leaf.nbytes for leaf in jax.tree.leaves(loaded)))
jax.effects_barrier()
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts bytes by Linux's /proc/self/io")
def test_each_host_reads_only_its_shards(tmp_path):
    """Two processes of two devices; parameters over fsdp 2 (the hosts) and tensor 2."""
    from spark_jax.config import Qwen2Config, SparkConfig
    from spark_jax.model_directory import parts as part_files

    llm = Qwen2Config(
        vocab_size=4096,
        hidden_size=512,
        num_hidden_layers=4,
        intermediate_size=2048,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    leaves = flatten(target_variables(SparkConfig(llm=llm), ("llm",))["llm"])
    values = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    part_files.write_arrays(tmp_path / "llm", values.items())
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(port), str(index), str(tmp_path / "llm")],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]
    for host in hosts:
        output, _ = host.communicate(timeout=300)
        read, held, whole = map(int, re.findall(r"\d+", output.splitlines()[-1]))
        print(f"read {read / 1e6:.2f} MB for shards of {held / 1e6:.2f} MB, of {whole / 1e6:.2f} MB")
        assert held < 0.51 * whole
        assert read < 1.05 * held + 200_000  # and the descriptions
