"""Eight CPU devices for every test, so that sharded paths are tested as sharded; a tiny model directory."""

import atexit
import os
import shutil
import tempfile

import jax
import pytest
from helpers import checked_types

checked_types.install()

# What the library keeps in the user's cache folder (compiled programs) goes with the tests, subprocesses included.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="spark-jax-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory):
    """A model directory of random weights, without voices; not to be changed."""
    from helpers import tiny_model

    folder = tmp_path_factory.mktemp("tiny_model")
    tiny_model.write(folder / "model", folder / "tokenizer")
    return folder / "model"
