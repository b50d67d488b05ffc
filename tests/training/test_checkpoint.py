"""Checkpoints are refused where they are of another configuration."""

import jax
import numpy as np
import pytest

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.training import checkpoint


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, toy):
    run = toy(tmp_path, 2)
    run.run()
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    place = sharding.replicated(sharding.make_mesh(1))
    other = {"params": jax.ShapeDtypeStruct((3,), np.float32, sharding=place)}
    with pytest.raises(SparkError, match="does not fit this configuration"):
        checkpoints.restore(other, None)
    checkpoints.close()
