"""Eight CPU devices for every test, so that sharded paths are tested as sharded; a tiny model directory."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory):
    """A model directory of random weights, without voices; not to be changed."""
    import tiny_model

    folder = tmp_path_factory.mktemp("tiny_model")
    tiny_model.write(folder / "model", folder / "tokenizer")
    return folder / "model"
