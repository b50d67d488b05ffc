"""Reading safetensors: every type, damaged files."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from spark_jax.convert.safetensors_file import read_safetensors
from spark_jax.errors import SparkError


def test_values_and_types(tmp_path):
    rng = np.random.default_rng(0)
    written = {
        "float32": rng.standard_normal((3, 4)).astype(np.float32),
        "bfloat16": rng.standard_normal((2, 5)).astype(ml_dtypes.bfloat16),
        "float16": rng.standard_normal(7).astype(np.float16),
        "int64": np.arange(6).reshape(1, 2, 3),
        "scalar": np.asarray(5, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_file(written, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = read_safetensors(tmp_path / "model.safetensors")
    assert tensors.keys() == written.keys()
    for name, values in written.items():
        assert (tensors[name].shape, tensors[name].dtype) == (values.shape, values.dtype)
        np.testing.assert_array_equal(tensors[name].read(), values)


def test_truncated_and_corrupt_files(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((4, 4), np.float32)}, path)
    content = path.read_bytes()
    header = {"w": {"dtype": "F32", "shape": [5, 4], "data_offsets": [0, 64]}}
    text = json.dumps(header).encode()
    for damaged in (
        b"",
        content[:5],
        content[:20],
        content[:-1],
        struct.pack("<Q", 1 << 60) + content[8:],
        b"\x10" + bytes(7) + b"not json at all!" + bytes(64),
        struct.pack("<Q", len(text)) + text + bytes(64),
    ):
        path.write_bytes(damaged)
        with pytest.raises(SparkError, match=r"model\.safetensors: not a complete safetensors file") as caught:
            read_safetensors(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(SparkError, match="no such file"):
        read_safetensors(tmp_path / "none.safetensors")


def test_a_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((4, 4), np.float32)}, path)
    tensors = read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SparkError, match="the file ends within tensor w"):
        tensors["w"].read()


def test_unknown_types_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(SparkError, match="tensor w has type F8_E4M3"):
        read_safetensors(path)
