"""The weight files of a part: which there are, in one piece or in shards."""

from collections.abc import Callable
from pathlib import Path

from spark_jax.convert.causes import refuse_gguf, refuse_pointer
from spark_jax.convert.formats.safetensors_file import read_safetensors
from spark_jax.convert.formats.tensors import SourceTensor
from spark_jax.convert.formats.torch_pickle import read_torch_pickle
from spark_jax.errors import ManyFaultsError, SparkError, one_line
from spark_jax.shared.files import read_json

_READERS: dict[str, Callable[[Path], dict[str, SourceTensor]]] = {
    ".safetensors": read_safetensors,
    ".bin": read_torch_pickle,
}
# In the order of preference; an index names the shards.
FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find(folder: Path) -> Path:
    """Returns the weight file of a folder, or the index of its shards.

    Raises:
      SparkError: there is none, but perhaps one of GGUF.
    """
    for name in FILES:
        if (folder / name).is_file():
            refuse_pointer(folder / name)
            return folder / name
    refuse_gguf(folder)
    raise SparkError(f"{folder}: no weights; expected {', '.join(FILES[:-1])} or {FILES[-1]}")


def files(path: Path) -> list[Path]:
    """Returns the files that `read` reads: the weight file itself, or an index and its shards.

    Raises:
      SparkError: the index is malformed, or a shard has no plain name.
    """
    return [path, *sorted({path.parent / file for file in _index(path).values()})] if path.suffix == ".json" else [path]


def read(path: Path) -> dict[str, SourceTensor]:
    """Reads the tensors of a weight file, or of all the shards that an index names.

    Raises:
      SparkError: a file is missing or damaged, or holds another set of tensors than the index says (one message
        has all differences).
    """
    if path.suffix != ".json":
        return read_file(path)
    places, tensors, faults = _index(path), {}, []
    for shard in sorted(set(places.values())):
        if not (path.parent / shard).is_file():
            faults.append(f"{shard} is missing")
            continue
        held = read_file(path.parent / shard)
        expected = {name for name, file in places.items() if file == shard}
        faults += [f"{shard} lacks {name}" for name in sorted(expected - held.keys())]
        faults += [f"{shard} holds {name}, which the index does not say" for name in sorted(held.keys() - expected)]
        tensors |= held
    if faults:
        raise ManyFaultsError({str(path): faults})
    return tensors


def read_file(path: Path) -> dict[str, SourceTensor]:
    """Reads the tensors of one file, by its suffix.

    Raises:
      SparkError: the file is missing or damaged, or is the pointer that Git LFS leaves in its place.
    """
    refuse_pointer(path)
    return _READERS[path.suffix](path)


def _index(path: Path) -> dict[str, str]:
    """Tensor name → shard."""
    content = read_json(path)
    try:
        places = content["weight_map"]
        shards = {str(file) for file in places.values()}
    except (KeyError, TypeError, AttributeError) as error:
        reason = one_line(error)
        raise SparkError(f"{path}: not an index of shards: expected weight_map, names to files ({reason})") from error
    for shard in sorted(shards):  # a path could lead anywhere
        if Path(shard).name != shard or Path(shard).suffix not in _READERS:
            raise SparkError(f"{path}: {shard!r} is no name of a weight file")
    return places
