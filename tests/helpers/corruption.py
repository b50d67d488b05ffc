"""Random structural damage to the files of an official directory: headers, offsets, keys, shapes, lengths, syntax.

A change of a value alone (a weight that stays finite, a digit of a number, a letter of a text) is not among it: nothing
in the files says what it was.
"""

import copy
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

JUNK = (None, "junk", [], {}, -1, True, 1.5, [1, 2], 10**9, 0)


def damage(folder: Path, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """Damages one file; what was done, and the parts whose conversion reads the file."""
    files = {
        "BiCodec/model.safetensors": (_safetensors, ("bicodec",)),
        "LLM/model.safetensors": (_safetensors, ("llm",)),
        "wav2vec2-large-xlsr-53/model.safetensors": (_safetensors, ("wav2vec2",)),
        "wav2vec2-large-xlsr-53/pytorch_model.bin": (_torch_zip, ("wav2vec2",)),
        "config.yaml": (_settings, ("bicodec",)),
        "BiCodec/config.yaml": (_settings, ("bicodec",)),
        "LLM/config.json": (_settings, ("llm",)),
        "wav2vec2-large-xlsr-53/config.json": (_settings, ("wav2vec2",)),
        "wav2vec2-large-xlsr-53/preprocessor_config.json": (_settings, ("wav2vec2",)),
        "LLM/tokenizer.json": (_tokenizer, ("bicodec", "llm")),
        "LLM/tokenizer_config.json": (_length, ("llm",)),
    }
    present = [name for name in files if (folder / name).exists()]
    name = present[rng.integers(len(present))]
    how, parts = files[name]
    return f"{name}: {how(folder / name, rng)}", parts


def _pick(rng: np.random.Generator, choices) -> Any:
    choices = list(choices)
    return choices[rng.integers(len(choices))]


def _safetensors(path: Path, rng: np.random.Generator) -> str:
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    kind = _pick(rng, ("flip", "length", *("edit",) * 6))
    if kind == "length":
        return _length(path, rng)
    if kind == "flip":
        at, bit = int(rng.integers(8 + size)), 1 << int(rng.integers(8))
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        return f"bit {bit} of header byte {at}"
    header = json.loads(content[8 : 8 + size])
    name = _pick(rng, header.keys() - {"__metadata__"})
    entry, what = header[name], _pick(rng, _HEADER_EDITS)
    done = _HEADER_EDITS[what](header, name, entry, rng)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    return f"{what} {name} {done}"


def _swap(header, name, entry, rng):
    """Another tensor's place, of another size: between equals nobody can tell."""
    other = _pick(rng, [key for key, value in header.items() if "shape" in value and value["shape"] != entry["shape"]])
    header[name], header[other] = header[other], entry
    return other


def _set(key: str, values: Callable[[Any, np.random.Generator], Any]):
    def edit(header, name, entry, rng):
        entry[key] = values(entry[key], rng)
        return f"{key} {entry[key]}"

    return edit


def _another_shape(shape, rng):
    return _pick(
        rng,
        (
            [*shape, 1],
            [*shape, 2],
            [2 * n for n in shape] or [3],
            [n + 1 for n in shape] or [1, 1],
            [shape[0], -shape[0]] if shape else [0],
            "shape",
            None,
        ),
    )


def _moved(offsets, rng):
    step = int(_pick(rng, (1, 4, -4, 64, 1 << 40)))
    return _pick(
        rng,
        (
            [offsets[0] + step, offsets[1] + step],
            [offsets[0], offsets[1] + step],
            offsets[::-1],
            offsets[:1],
            None,
            ["0", "4"],
        ),
    )


_HEADER_EDITS = {
    "drop": lambda header, name, entry, rng: header.pop(name) and "",
    "rename": lambda header, name, entry, rng: header.update({_renamed(name, rng): header.pop(name)}),
    "copy": lambda header, name, entry, rng: header.update({_renamed(name, rng): copy.deepcopy(entry)}),
    "junk": lambda header, name, entry, rng: header.update({name: _pick(rng, JUNK)}),
    "swap": _swap,
    "shape": _set("shape", _another_shape),
    "offsets": _set("data_offsets", _moved),
    "dtype": _set(
        "dtype",
        lambda old, rng: _pick(rng, [t for t in ("I32", "F16", "BF16", "F64", "I8", "F8_E4M3", "?", 5) if t != old]),
    ),
    "key": lambda header, name, entry, rng: entry.pop(_pick(rng, entry)) and "",
}


def _renamed(name: str, rng: np.random.Generator) -> str:
    return _pick(rng, (name + "x", name[1:], name.upper(), name.replace(".", "_"), ""))


def _torch_zip(path: Path, rng: np.random.Generator) -> str:
    kind = _pick(rng, ("length", "flip", "drop", "cut", "pickle", "pickle", "pickle"))
    if kind == "length":
        return _length(path, rng)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
        directory = archive.start_dir
    if kind == "flip":  # the archive's own directory
        content = bytearray(path.read_bytes())
        at, bit = int(rng.integers(directory, len(content))), 1 << int(rng.integers(8))
        content[at] ^= bit
        path.write_bytes(content)
        return f"bit {bit} of directory byte {at - directory}"
    name = "archive/data.pkl" if kind == "pickle" else _pick(rng, entries)
    if kind == "drop":
        del entries[name]
    elif kind == "cut":
        entries[name] = entries[name][: rng.integers(len(entries[name]))]
    else:
        program = bytearray(entries[name])
        at, bit = int(rng.integers(len(program))), 1 << int(rng.integers(8))
        program[at] ^= bit
        entries[name] = bytes(program)
        name = f"bit {bit} of byte {at}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    return f"{kind} {name}"


def _settings(path: Path, rng: np.random.Generator) -> str:
    """JSON or YAML: its length, a key, the type of a value, a size that the tensors bear out."""
    if rng.random() < 0.2:
        return _length(path, rng)
    load, dump = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    content = load(path.read_text())
    sections = [content] + [value for value in _values(content) if isinstance(value, dict) and value]
    section = _pick(rng, sections)
    key = _pick(rng, section)
    kind = _pick(rng, ("drop", "rename", "junk", "size"))
    old = section[key]
    if kind == "junk":
        # A number in a number's place is a value, and so is a flag in a flag's.
        section[key] = _pick(rng, [junk for junk in JUNK if _kind(junk) != _kind(old)])
    elif kind == "size" and key in _SIZES and isinstance(old, int):
        section[key] = old + int(rng.integers(1, 9))
    else:
        del section[key]
        if kind == "rename":
            section[key + "x"] = old
    path.write_text(dump(content))
    return f"{kind} {key}: {old!r} → {section.get(key)!r}"


_SIZES = {
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "vocos_dim",
    "vocos_intermediate_dim",
    "vocos_num_layers",
    "input_channels",
    "out_channels",
    "codebook_size",
    "codebook_dim",
    "input_dim",
    "latent_dim",
    "token_num",
}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "flag"
    return "number" if isinstance(value, int | float) else type(value).__name__


def _values(content: Any):
    if isinstance(content, dict):
        for value in content.values():
            yield value
            yield from _values(value)


def _tokenizer(path: Path, rng: np.random.Generator) -> str:
    content = json.loads(path.read_text())
    kind = _pick(rng, ("length", "top", "model", "added", "added", "id", "vocab"))
    if kind == "length":
        return _length(path, rng)
    if kind in ("top", "model"):
        section = content if kind == "top" else content["model"]
        key = _pick(rng, section)
        if rng.random() < 0.5:
            del section[key]
        else:
            section[key] = _pick(rng, JUNK)
        done = f"{key} → {section.get(key)!r}"
    elif kind == "vocab":
        key = _pick(rng, content["model"]["vocab"])
        done = f"{key!r}: {content['model']['vocab'].pop(key)}"
    else:
        token = _pick(rng, content["added_tokens"])
        done = f"{token['content']}"
        if kind == "added":
            content["added_tokens"].remove(token)
        else:
            token["id"] += int(rng.integers(1, 3000))
    path.write_text(json.dumps(content))
    return f"{kind} {done}"


def _length(path: Path, rng: np.random.Generator) -> str:
    content = path.read_bytes()
    kind = _pick(rng, ("cut", "cut", "empty", "more", "zeros"))
    cut = int(rng.integers(len(content)))
    path.write_bytes(
        {
            "cut": content[:cut],
            "empty": b"",
            "more": content + b"\x07" * 16,
            "zeros": bytes(len(content)),
        }[kind]
    )
    return f"{kind} {cut if kind == 'cut' else ''}"
