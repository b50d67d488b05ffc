"""Torch checkpoints made by hand: archives and pickle programs, honest and not."""

import zipfile
from pathlib import Path


def write_archive(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **options) -> Path:
    """A checkpoint of a pickle program and storages; options go to `zipfile.ZipFile`."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in (storages or {}).items():
            archive.writestr(f"archive/data/{name}", content)
    return path


def tensor_program(
    kind: str = "FloatStorage",
    numel: int = 6,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    key: str = "0",
) -> bytes:
    """{"w": one tensor}, by torch's protocol 2."""
    return b"\x80\x02}" + text("w") + tensor(kind, numel, offset, shape, strides, key) + b"s."


def tensor(kind: str, numel: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], key: str) -> bytes:
    """Operations that leave one tensor on the stack."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(numel) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(number, dims)) + b"t" for dims in (shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + sizes + b"\x89NtR"


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + len(content).to_bytes(4, "little") + content


def number(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content
