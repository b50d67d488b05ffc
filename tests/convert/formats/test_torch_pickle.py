"""Reading torch checkpoints: values, layouts, shards, and archives that are damaged or mean harm."""

import json
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import official_layout
from helpers.torch_archive import tensor, tensor_program, text, write_archive

from spark_jax.convert import weights
from spark_jax.convert.formats import torch_pickle
from spark_jax.convert.formats.torch_pickle import read_torch_pickle
from spark_jax.errors import SparkError

ASSETS = Path(__file__).parents[2] / "assets"
SIX = np.arange(6, dtype="<f4").tobytes()


def refusal(path: Path) -> str:
    """Message of the refusal, for which less than 100 MB of memory were taken."""
    tracemalloc.start()
    try:
        with pytest.raises(SparkError) as caught:
            read_torch_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 1000
    return message


def test_reads_the_golden_checkpoint():
    tensors = read_torch_pickle(ASSETS / "wav2vec2_bin" / "pytorch_model.bin")
    weight = tensors["wav2vec2.encoder.pos_conv_embed.conv.weight_g"]
    assert weight.shape == (1, 1, 128) and weight.dtype == np.float32
    assert len(tensors) == 77
    for found in tensors.values():
        values = found.read()
        assert values.shape == found.shape and not found.fault and np.isfinite(values).all()


def test_values_equal_what_was_written(tmp_path):
    shapes = {"a.weight": (3, 5), "b.bias": (4,), "scalar": ()}
    written = {}

    def values(name, shape):
        written[name] = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
        return written[name]

    official_layout.write_torch_zip(tmp_path / "model.bin", shapes, values)
    tensors = read_torch_pickle(tmp_path / "model.bin")
    assert tensors.keys() == shapes.keys()
    for name in shapes:
        np.testing.assert_array_equal(tensors[name].read(), written[name])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FloatStorage", "<f4"),
        ("DoubleStorage", "<f8"),
        ("HalfStorage", "<f2"),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("LongStorage", "<i8"),
        ("IntStorage", "<i4"),
        ("ShortStorage", "<i2"),
        ("CharStorage", "i1"),
        ("ByteStorage", "u1"),
        ("BoolStorage", "?"),
    ],
)
def test_types_strides_and_offsets(tmp_path, kind, dtype):
    """A transposed view that starts within its storage."""
    storage = np.arange(8).astype(dtype)
    program = tensor_program(kind, numel=8, offset=2, shape=(3, 2), strides=(1, 3))
    read = read_torch_pickle(write_archive(tmp_path / "model.bin", program, {"0": storage.tobytes()}))["w"]
    assert read.dtype == np.dtype(dtype) and read.shape == (3, 2)
    np.testing.assert_array_equal(read.read(), storage[2:].reshape(2, 3).T)


def test_values_are_mapped_and_shared_storages_read_in_parts(tmp_path):
    """Views of one storage of 64 MB: overlapping, expanded, empty. None of them takes memory of its own."""
    storage = np.arange(1 << 24, dtype="<f4")
    views = {
        "row": ((1 << 22,), (1,), 5),
        "column": ((4, 3), (1, 1 << 22), 7),
        "expanded": ((2, 3), (0, 1), 9),
        "empty": ((0, 3), (3, 1), 0),
        "scalar": ((), (), 11),
        "whole": ((1 << 12, 1 << 12), (1 << 12, 1), 0),
    }
    items = b"".join(
        text(name) + tensor("FloatStorage", 1 << 24, offset, shape, strides, "0") + b"s"
        for name, (shape, strides, offset) in views.items()
    )
    path = write_archive(tmp_path / "model.bin", b"\x80\x02}" + items + b".", {"0": storage.tobytes()})
    tracemalloc.start()
    try:
        tensors = read_torch_pickle(path)
        values = {name: read.read() for name, read in tensors.items()}
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    for name, (shape, strides, offset) in views.items():
        expected = np.lib.stride_tricks.as_strided(storage[offset:], shape, [4 * step for step in strides])
        np.testing.assert_array_equal(values[name], expected, err_msg=name)
        with pytest.raises(ValueError, match="read-only"):
            values[name][...] = 0


def test_shards_of_an_index(tmp_path):
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, file in names.items():
        program = b"\x80\x02}" + text(name) + tensor("FloatStorage", 6, 0, (2, 3), (3, 1), "0") + b"s."
        write_archive(tmp_path / file, program, {"0": SIX})
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": names}))
    assert weights.find(tmp_path) == index
    tensors = weights.read(index)
    assert tensors.keys() == names.keys()
    for read in tensors.values():
        np.testing.assert_array_equal(read.read(), np.arange(6, dtype=np.float32).reshape(2, 3))


def test_files_of_torch_itself(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    state = {
        "float": base,
        "transposed": base.T,
        "slice": base[1:4, ::3],
        "expanded": base[:, :1].expand(6, 5),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "scalar": torch.tensor(3),
        "bool": base > 0,
        "int32": torch.arange(5, dtype=torch.int32),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "parameter": torch.nn.Parameter(base),
        "empty": torch.zeros(0, 3),
    }
    state |= torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    for protocol in (2, 4, 5):
        torch.save(torch.nn.ParameterDict().state_dict() | state, tmp_path / "model.bin", pickle_protocol=protocol)
        tensors = read_torch_pickle(tmp_path / "model.bin")
        assert tensors.keys() == state.keys()
        for name, expected in state.items():
            read = tensors[name].read()
            assert read.shape == tuple(expected.shape) and not tensors[name].fault
            np.testing.assert_array_equal(read.astype(np.float64), expected.detach().double().numpy(), err_msg=name)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "model.bin")  # with _metadata: the attributes of an OrderedDict
    assert read_torch_pickle(tmp_path / "model.bin").keys() == module.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"numel": 7}, r"needs 7 float32 values of archive/data/0, which has 24 bytes"),
        ({"offset": 1}, r"of shape \[2, 3\] reaches beyond its storage"),
        ({"strides": (4, 1)}, r"of shape \[2, 3\] reaches beyond its storage"),
        ({"shape": (1 << 40, 3), "strides": (0, 0)}, r"reaches beyond its storage"),
        ({"shape": (1 << 62, 0), "strides": (0, 0)}, r"too many"),
        ({"shape": (1,) * 40, "strides": (0,) * 40}, r"has 40 axes"),
        (
            {"numel": 1 << 80, "shape": (1 << 30, 1 << 30), "strides": (0, 0)},
            r"needs 1208925819614629174706176 float32",
        ),
        ({"key": "1"}, r"lies in storage '1', which the archive lacks"),
        ({"key": "../data.pkl"}, r"lies in storage '\.\./data\.pkl', which the archive lacks"),
        ({"key": "/etc/passwd"}, r"lies in storage '/etc/passwd', which the archive lacks"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, options, fault):
    read = read_torch_pickle(write_archive(tmp_path / "model.bin", tensor_program(**options), {"0": SIX}))["w"]
    with pytest.raises(SparkError, match=rf"model\.bin: w {fault}|model\.bin: w .*{fault}"):
        read.read()
    assert read.fault


def test_what_is_no_tensor_is_a_fault_of_its_own(tmp_path):
    weight = text("w") + tensor("FloatStorage", 6, 0, (6,), (1,), "0") + b"s"
    program = b"\x80\x02}" + text("step") + b"K\x01s" + weight + b"."
    tensors = read_torch_pickle(write_archive(tmp_path / "model.bin", program, {"0": SIX}))
    assert tensors["step"].fault == "is no tensor" and not tensors["w"].fault


@pytest.mark.extended
def test_compressed_entries_are_refused(tmp_path):
    """A bomb: a gigabyte of zeros in a megabyte, as the description and as a storage."""
    zeros = zlib.compressobj(wbits=-15)
    packed = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(1024)) + zeros.flush()
    for name in ("archive/data.pkl", "archive/data/0"):
        path = tmp_path / "model.bin"
        with zipfile.ZipFile(path, "w") as archive:
            if not name.endswith("pkl"):
                archive.writestr("archive/data.pkl", tensor_program())
            archive.writestr(name, packed)
        damaged = bytearray(path.read_bytes())
        start = damaged.rfind(name.encode())  # the directory's copy, 46 bytes after its beginning
        struct.pack_into("<H", damaged, start - 46 + 10, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", damaged, start - 46 + 24, 1 << 30)
        path.write_bytes(damaged)
        assert f"entry {name} is compressed or encrypted" in refusal(path)


@pytest.mark.parametrize("name", ["../data/0", "/tmp/0", "archive/../../0", "C:\\0", "a\\b", "archive/data/.."])
def test_paths_out_of_the_archive_are_refused(tmp_path, name):
    path = write_archive(tmp_path / "model.bin", tensor_program(), {"0": SIX})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, SIX)
    assert "is a path out of the archive; refused" in refusal(path)
    assert sorted(os.listdir(tmp_path)) == ["model.bin"]


def test_repeated_names_are_refused(tmp_path):
    path = write_archive(tmp_path / "model.bin", tensor_program(), {"0": SIX})
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data/0", bytes(24))
    assert "two entries are named archive/data/0" in refusal(path)


def test_sizes_beyond_the_file_and_entries_over_each_other(tmp_path):
    path = write_archive(tmp_path / "model.bin", tensor_program(), {"0": SIX, "1": SIX})
    content = path.read_bytes()

    def directory_of(name: bytes, data: bytes) -> int:
        return data.rfind(name) - 46

    for size in (25, 1 << 31):  # declared for storage 0, which lies before storage 1
        damaged = bytearray(content)
        for field in (20, 24):
            struct.pack_into("<I", damaged, directory_of(b"archive/data/0", damaged) + field, size)
        path.write_bytes(damaged)
        assert "model.bin: " in refusal(path)
    damaged = bytearray(content)  # storage 1 is said to lie where storage 0 does
    struct.pack_into("<I", damaged, directory_of(b"archive/data/1", damaged) + 42, content.find(b"archive/data/0") - 30)
    path.write_bytes(damaged)
    assert "model.bin: " in refusal(path)
    damaged = bytearray(content)  # and beyond the end
    struct.pack_into("<I", damaged, directory_of(b"archive/data/1", damaged) + 42, len(content) + 5)
    path.write_bytes(damaged)
    assert "model.bin: " in refusal(path)


def test_a_directory_of_any_size_is_not_read(tmp_path, monkeypatch):
    """Its entries would take ten times the memory; with a limit of a kilobyte for 300 of them."""
    storages = {str(index): b"" for index in range(300)}
    path = write_archive(tmp_path / "model.bin", tensor_program(), {"0": SIX} | storages)
    monkeypatch.setattr(torch_pickle, "_MAX_DIRECTORY_BYTES", 1024)
    assert "not a complete torch checkpoint (a directory of" in refusal(path)


def test_huge_descriptions_are_not_read(tmp_path):
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w") as archive, archive.open("archive/data.pkl", "w") as entry:
        for _ in range(200):
            entry.write(bytes(1 << 20))
    assert "archive/data.pkl has 209715200 bytes, at most 16777216 are expected" in refusal(path)


def test_truncated_and_damaged_files(tmp_path):
    content = (ASSETS / "wav2vec2_bin" / "pytorch_model.bin").read_bytes()
    path = tmp_path / "model.bin"
    for size in (0, 1, 3, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "not a complete torch checkpoint" in refusal(path)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(SparkError, match="damaged"):
        [found.read() for found in read_torch_pickle(path).values()]
    path.write_bytes(content)
    tensors = read_torch_pickle(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SparkError, match=r"model\.bin: the file ends within entry"):
        [found.read() for found in tensors.values()]


def test_no_flipped_bit_goes_unseen_or_unexplained(tmp_path):
    """1,000 seeded flips: a refusal of one line, a fault, or the same values (the flip is where nothing is read)."""
    content = write_archive(tmp_path / "model.bin", tensor_program(), {"0": SIX}).read_bytes()
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(1000):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (tmp_path / "model.bin").write_bytes(damaged)
        values, problem = None, ""
        try:
            tensors = read_torch_pickle(tmp_path / "model.bin")
            assert tensors.keys() == {"w"}
            values = tensors["w"].read()
        except SparkError as error:
            problem = str(error)
            seen += 1
        assert "\n" not in problem
        if values is not None:
            np.testing.assert_array_equal(values, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert seen > 600


def test_other_files(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(pickle.dumps({"w": 1}, 2))
    assert "before torch 1.6" in refusal(path)
    with pytest.raises(SparkError, match=r"cannot be read \(No such file"):
        read_torch_pickle(tmp_path / "none.bin")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "0 entries named data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", tensor_program())
        archive.writestr("b/data.pkl", tensor_program())
    assert "2 entries named data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_program())
        archive.writestr("archive/byteorder", "big")
    assert "stored big-endian" in refusal(path)
