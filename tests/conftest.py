"""Eight CPU devices for every test, so that sharded paths are tested as sharded; a tiny model directory.

`pytest -m gpu` has the GPU as default device, and the CPU beside it for what is to be the same there. Its tests run by
their `place`, the quick and telling ones first, so that a run that is cut off says most of what it can.
"""

import atexit
import os
import shutil
import tempfile

import jax
import pytest
from helpers import checked_types

checked_types.install()

from spark_jax import sharding  # noqa: E402 (its types are to be checked)

# What the library keeps in the user's cache folder (compiled programs) goes with the tests, subprocesses included.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="spark-jax-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    if config.option.markexpr == "gpu":
        jax.config.update("jax_platforms", "cuda,cpu")


def pytest_collection_modifyitems(config, items):
    if config.option.markexpr == "gpu":
        items.sort(key=lambda item: mark.kwargs["place"] if (mark := item.get_closest_marker("gpu")) else 0)


@pytest.fixture(scope="session")
def gpu():
    """The mesh of one GPU, which is the default device."""
    try:
        return sharding.make_mesh(1, devices=jax.devices("cuda"))
    except RuntimeError as error:
        pytest.skip(f"a GPU, by pytest -m gpu: {' '.join(str(error).split())[:200]}")


@pytest.fixture(scope="session")
def cpu(gpu):
    """The mesh of one CPU beside the GPU."""
    return sharding.make_mesh(1, devices=jax.devices("cpu"))


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory):
    """A model directory of random weights, without voices; not to be changed."""
    from helpers import tiny_model

    folder = tmp_path_factory.mktemp("tiny_model")
    tiny_model.write(folder / "model", folder / "tokenizer")
    return folder / "model"
