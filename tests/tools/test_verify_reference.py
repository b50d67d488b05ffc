"""The comparison with the official code: what can be seen without a checkout of it."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
import verify_reference
from helpers.tiny_config import tiny

from spark_jax.bicodec.model import BiCodec
from spark_jax.errors import SparkError


def test_what_is_no_checkout_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        verify_reference.main(tmp_path, tmp_path, tmp_path)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: has no sparktts; expected a checkout of the official repository\n"
    )


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_missing_packages_are_named(tmp_path):
    (tmp_path / "sparktts").mkdir()
    with pytest.raises(SparkError, match=r"package 'torch' is not installed; expected the extra: .*parity"):
        verify_reference.load_reference(tmp_path, tmp_path)


@pytest.mark.extended
def test_every_stage_is_a_module_of_ours():
    settings = tiny().bicodec
    codec, inputs = BiCodec(settings), (jnp.zeros((1, 8, 16)), jnp.zeros((1, 4096)))
    variables = jax.eval_shape(lambda: codec.init(jax.random.key(0), *inputs, train=False))
    _, captured = jax.eval_shape(
        lambda values: codec.apply(values, *inputs, train=False, capture_intermediates=True), variables
    )
    for _, path, _, _ in verify_reference.STAGES:
        node = captured["intermediates"]
        for key in path.split("/"):
            node = node[key]
        [output] = node["__call__"]
        assert output.ndim == 3
