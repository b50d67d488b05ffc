import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.training import checkpoint

PARAMS = {"a": {"kernel": np.arange(16.0, dtype=np.float32).reshape(8, 2)}, "b": np.ones(3, np.float32)}


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_a_part_is_replaced_and_read_back(tmp_path):
    checkpoint.save_params(tmp_path / "part", jax.tree.map(jnp.zeros_like, PARAMS))
    checkpoint.save_params(tmp_path / "part", jax.tree.map(jnp.asarray, PARAMS))
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
    for wanted in (None, shapes(PARAMS)):
        jax.tree.map(np.testing.assert_array_equal, checkpoint.load_params(tmp_path / "part", wanted), PARAMS)


def test_a_part_is_read_into_shardings(tmp_path):
    checkpoint.save_params(tmp_path / "part", jax.tree.map(jnp.asarray, PARAMS))
    mesh = sharding.make_mesh(2, 4, 1)
    place = jax.sharding.NamedSharding(mesh, jax.P("fsdp"))
    places = {"a": {"kernel": place}, "b": sharding.replicated(mesh)}
    loaded = checkpoint.load_params(tmp_path / "part", checkpoint.abstract(PARAMS, places))
    assert loaded["a"]["kernel"].sharding == place
    np.testing.assert_array_equal(loaded["a"]["kernel"], PARAMS["a"]["kernel"])


def test_all_differences_are_listed_at_once(tmp_path):
    checkpoint.save_params(tmp_path / "part", jax.tree.map(jnp.asarray, PARAMS))
    wanted = {"a": {"kernel": jax.ShapeDtypeStruct((8, 3), np.float32)}, "c": jax.ShapeDtypeStruct((1,), np.float32)}
    with pytest.raises(SparkError, match=r"missing c \(1,\); extra b \(3,\); a/kernel is \(8, 2\), expected \(8, 3\)"):
        checkpoint.load_params(tmp_path / "part", wanted)


def test_no_such_part_and_no_part(tmp_path):
    with pytest.raises(SparkError, match="no such parameter folder"):
        checkpoint.load_params(tmp_path / "part")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SparkError, match="not a parameter folder"):
        checkpoint.load_params(tmp_path / "empty")


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, toy):
    run = toy(tmp_path, 2)
    run.run()
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    place = sharding.replicated(sharding.make_mesh(1))
    other = {"params": jax.ShapeDtypeStruct((3,), np.float32, sharding=place)}
    with pytest.raises(SparkError, match="does not fit this configuration"):
        checkpoints.restore(other, None)
    checkpoints.close()
