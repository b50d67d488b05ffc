"""Reading safetensors: every type, damaged files."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spark_jax.convert.formats.safetensors_file import read_safetensors, write_safetensors
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


def test_unreadable_headers(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((4, 4), np.float32)}, path)
    content = path.read_bytes()
    twice = b'{"w": 1, "w": 2}'
    for damaged in (
        b"",
        content[:5],
        content[:20],
        struct.pack("<Q", 1 << 60) + content[8:],
        b"\x10" + bytes(7) + b"not json at all!" + bytes(64),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", len(twice)) + twice,
    ):
        path.write_bytes(damaged)
        with pytest.raises(SparkError, match=r"model\.safetensors: not a safetensors file") as caught:
            read_safetensors(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(SparkError, match=r"cannot be read \(No such file"):
        read_safetensors(tmp_path / "none.safetensors")


def with_header(path, header, data=bytes(64)):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"shape": [5, 4]}, "takes 80 bytes"),
        ({"shape": [4, -4]}, "has shape"),
        ({"shape": [4, 4.0]}, "has shape"),
        ({"shape": "4"}, "has shape"),
        ({"dtype": "F8_E4M3"}, "has type 'F8_E4M3'"),
        ({"dtype": "text"}, "has type 'text'"),
        ({"dtype": ["F32"]}, "has type"),
        ({"data_offsets": [0, 60]}, "takes 64 bytes"),
        ({"data_offsets": [-64, 0]}, "has data_offsets"),
        ({"data_offsets": [4, 68]}, "begins at byte"),
        ({"data_offsets": [128, 192]}, "is truncated"),
        ({"data_offsets": None}, "has data_offsets"),
        ({"more": 1}, "is not described by"),
    ],
)
def test_faults_of_a_description_go_with_the_tensor(tmp_path, change, fault):
    path = tmp_path / "model.safetensors"
    sound = {"dtype": "F32", "shape": [4, 4], "data_offsets": [64, 128]}
    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | change
    with_header(path, {"w": entry, "v": sound}, bytes(128))
    tensors = read_safetensors(path)
    assert fault in tensors["w"].fault or fault in tensors["v"].fault
    with pytest.raises(SparkError, match=rf"model\.safetensors: [wv] .*{fault}"):
        [tensors[name].read() for name in "wv"]


def test_a_truncated_file_names_every_tensor_that_it_lacks(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: np.ones((4, 4), np.float32) for name in "abc"}, path)
    path.write_bytes(path.read_bytes()[:-100])
    tensors = read_safetensors(path)
    assert [name for name, tensor in tensors.items() if "is truncated" in tensor.fault] == ["b", "c"]
    np.testing.assert_array_equal(tensors["a"].read(), 1)


def test_data_that_no_tensor_names(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: np.ones((4, 4), np.float32) for name in "ab"}, path)
    path.write_bytes(path.read_bytes() + b"more")
    assert "is the last and ends at byte 128" in read_safetensors(path)["b"].fault


def test_a_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((4, 4), np.float32)}, path)
    tensors = read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SparkError, match="the file ends within tensor w"):
        tensors["w"].read()


def test_written_files_are_read_by_the_format_s_library(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "short": rng.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "count": np.asarray(7, np.int64),
        "long": rng.standard_normal((2, 3)).astype(np.float32),
    }
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {name: (v.shape, v.dtype) for name, v in tensors.items()}, reversed(list(tensors.items())))
    for found in (load_file(path), {name: tensor.read() for name, tensor in read_safetensors(path).items()}):
        assert found.keys() == tensors.keys()
        for name, values in tensors.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)
    with pytest.raises(LookupError, match="never written: short"):
        write_safetensors(path, {"short": ((3, 5), tensors["short"].dtype)}, [])
