"""Reading torch checkpoints: values, layouts, and files that mean harm."""

import os
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import official_layout
import pytest

from spark_jax.convert.torch_pickle import read_torch_pickle
from spark_jax.errors import SparkError

ASSETS = Path(__file__).parents[1] / "assets"


def write_archive(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in (storages or {}).items():
            archive.writestr(f"archive/data/{name}", content)
    return path


def tensor_program(
    kind: str = "FloatStorage", numel: int = 6, offset: int = 0, shape: str = "K\x02K\x03", strides: str = "K\x03K\x01"
) -> bytes:
    """{"w": one tensor in storage "0"}; shape and strides as pickle operations."""
    storage = f"(X\x07\x00\x00\x00storagectorch\n{kind}\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK{chr(numel)}tQ"
    arguments = f"({storage}K{chr(offset)}({shape}t({strides}t\x89N"
    return b"\x80\x02}X\x01\x00\x00\x00w" + f"ctorch._utils\n_rebuild_tensor_v2\n{arguments}tRs.".encode("latin1")


def test_reads_the_golden_checkpoint():
    tensors = read_torch_pickle(ASSETS / "wav2vec2_bin" / "pytorch_model.bin")
    weight = tensors["wav2vec2.encoder.pos_conv_embed.conv.weight_g"]
    assert weight.shape == (1, 1, 128) and weight.dtype == np.float32
    assert len(tensors) == 77
    for tensor in tensors.values():
        values = tensor.read()
        assert values.shape == tensor.shape and np.isfinite(values).all()


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
    "kind, dtype",
    [("FloatStorage", "<f4"), ("DoubleStorage", "<f8"), ("HalfStorage", "<f2"), ("LongStorage", "<i8"),
     ("BFloat16Storage", ml_dtypes.bfloat16)],
)  # fmt: skip
def test_strides_and_offsets(tmp_path, kind, dtype):
    """A transposed view that starts within its storage."""
    storage = np.arange(8).astype(dtype)
    program = tensor_program(kind, numel=8, offset=2, shape="K\x03K\x02", strides="K\x01K\x03")
    path = write_archive(tmp_path / "model.bin", program, {"0": storage.tobytes()})
    tensor = read_torch_pickle(path)["w"]
    assert tensor.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(tensor.read(), storage[2:].reshape(2, 3).T)


class Harm:
    """Its pickle runs a command that leaves a marker."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["system", "eval", "exec", "getattr", "open"])
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    write = "open('marker', 'w').close()"
    harm = {
        "system": Harm(os.system, "touch marker"),
        "eval": Harm(eval, write),
        "exec": Harm(exec, write),
        "getattr": Harm(getattr, "text", "upper"),
        "open": Harm(open, "marker", "w"),
    }[name]
    path = write_archive(tmp_path / "model.bin", pickle.dumps({"w": harm}, protocol))
    with pytest.raises(SparkError, match=rf"model\.bin: the pickle names \w+\.{name}; refused") as caught:
        read_torch_pickle(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "program, message",
    [
        (b"(S'touch marker'\nios\nsystem\n.", "os.system"),  # INST
        (b"(cos\nsystem\nS'touch marker'\no.", "os.system"),  # OBJ
        (b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch marker\x85\x81.", "os.system"),  # NEWOBJ
        (b"\x80\x02ctorch._utils\n_rebuild_wrapper_subclass\n)R.", "torch._utils._rebuild_wrapper_subclass"),
        (b"\x80\x02ctorch\nload\n)R.", "torch.load"),
        (b"\x80\x02ccollections\nOrderedDict.fromkeys.__globals__\n.", "OrderedDict.fromkeys"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x16OrderedDict.fromkeys.x\x93.", "OrderedDict.fromkeys.x"),
        # BUILD on what the vocabulary gives: setting attributes of an allowed function.
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00_callX\x01\x00\x00\x00xsb.", "data.pkl"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x05\x00\x00\x00_callX\x01\x00\x00\x00xs\x86b.", "data.pkl"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo index"),  # would size CPython's memo to 16 GB
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "data.pkl"),  # BYTEARRAY8 of a terabyte
        (b"\x80\x02" + b"(" * 100, "data.pkl"),
        (b"", "data.pkl"),
        (b"\x80\x02K\x01.", "int"),
        (b"\x80\x02}X\x01\x00\x00\x00wK\x01s.", "no tensor"),
    ],
)  # fmt: skip
def test_malformed_programs_are_refused(tmp_path, monkeypatch, program, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SparkError) as caught:
        read_torch_pickle(write_archive(tmp_path / "model.bin", program))
    assert "model.bin" in str(caught.value) and message in str(caught.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "options",
    [{"numel": 7}, {"offset": 1}, {"strides": "K\x04K\x01"},
     {"shape": "J\xff\xff\xff\x7fK\x03", "strides": "K\x00K\x00"}],
)  # fmt: skip
def test_tensors_stay_within_their_storage(tmp_path, options):
    path = write_archive(tmp_path / "model.bin", tensor_program(**options), {"0": bytes(24)})
    with pytest.raises(SparkError, match="tensor w"):
        read_torch_pickle(path)


def test_missing_storage(tmp_path):
    with pytest.raises(SparkError, match=r"tensor w lies in archive/data/0, which the archive lacks"):
        read_torch_pickle(write_archive(tmp_path / "model.bin", tensor_program()))


def test_compressed_entries_are_refused(tmp_path):
    path = write_archive(tmp_path / "model.bin", tensor_program(), {"0": bytes(24)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(SparkError, match="compressed"):
        read_torch_pickle(path)


def test_truncated_and_damaged_files(tmp_path):
    content = (ASSETS / "wav2vec2_bin" / "pytorch_model.bin").read_bytes()
    path = tmp_path / "model.bin"
    for size in (0, 3, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(SparkError, match=r"model\.bin: not a complete torch checkpoint"):
            read_torch_pickle(path)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(SparkError, match="damaged"):
        for tensor in read_torch_pickle(path).values():
            tensor.read()


def test_other_files(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(pickle.dumps({"w": 1}, 2))
    with pytest.raises(SparkError, match="before torch 1.6"):
        read_torch_pickle(path)
    with pytest.raises(SparkError, match="no such file"):
        read_torch_pickle(tmp_path / "none.bin")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(SparkError, match="0 entries named data.pkl"):
        read_torch_pickle(path)
