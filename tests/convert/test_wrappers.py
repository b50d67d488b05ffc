"""Names as wrappers leave them: what all begin with is left out and said, for every prefix and every model."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import official_layout

from spark_jax.config import RELEASE
from spark_jax.convert import release
from spark_jax.convert.engine import source_shapes
from spark_jax.convert.formats.tensors import SourceTensor
from spark_jax.convert.tables import qwen2
from spark_jax.convert.wrappers import unwrap
from spark_jax.model_directory.parameters import PARTS, abstract_part

CONFIG = official_layout.tiny()
FILE = Path("model.safetensors")
PREFIXES = ["_orig_mod.", "module.", "base_model.model.", "model.", "_orig_mod.module.", "module._orig_mod.", "a.b.c."]


def named(names):
    return {name: SourceTensor((1,), np.dtype(np.float32), lambda: np.zeros(1)) for name in names}


@pytest.fixture(params=PARTS)
def part(request):
    table = release.table(request.param, CONFIG)
    names = source_shapes(table.rules, abstract_part(request.param, getattr(CONFIG, request.param)))
    return table, list(names)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_left_out_and_said(part, prefix):
    table, names = part
    with pytest.warns(UserWarning, match="model.safetensors: names of tensors are read without '.*'$") as told:
        found = unwrap(named(prefix + name for name in names), table, FILE)
    assert list(found) == names and len(told) == 1
    for piece in prefix.split(".")[:-1]:
        assert piece in str(told[0].message)


def test_the_release_s_own_names_stay(part):
    """Those of a tied decoder all begin with model., and are its own."""
    table, names = part
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(unwrap(named(names), table, FILE)) == names
        assert list(unwrap(named(names[:1]), table, FILE)) == names[:1]
        assert unwrap({}, table, FILE) == {}
        # Not all begin with it: what does not fit is told by its own name.
        mixed = [f"module.{names[0]}", *names[1:]]
        assert list(unwrap(named(mixed), table, FILE)) == mixed


def test_wrappers_of_single_layers(part):
    table, names = part
    inner = [name.replace(".", "._fsdp_wrapped_module.", 1) for name in names]
    with pytest.warns(UserWarning, match="without '_fsdp_wrapped_module.'"):
        assert list(unwrap(named(inner), table, FILE)) == names


def test_names_that_would_fall_together_stay(part):
    table, names = part
    both = ["_orig_mod." + names[0], names[0]]
    assert list(unwrap(named(both), table, FILE)) == both


def test_the_release_s_size_takes_no_time():
    table = qwen2.table(RELEASE.llm)
    names = [name for rule in table.rules for name in rule.source_names()]
    with pytest.warns(UserWarning, match="'_orig_mod.' and 'base_model.model.'"):
        assert list(unwrap(named(f"_orig_mod.base_model.model.{name}" for name in names), table, FILE)) == names
