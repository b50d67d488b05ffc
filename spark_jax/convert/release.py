"""The parts of a model as the release has them: where their files lie, and how these are read and written.

OFFICIAL/config.yaml
OFFICIAL/BiCodec/{config.yaml, weights}
OFFICIAL/wav2vec2-large-xlsr-53/{config.json, preprocessor_config.json, weights}
OFFICIAL/LLM/{config.json, generation_config.json, weights, tokenizer files}
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_jax.config import SparkConfig, from_mapping
from spark_jax.convert import configuration
from spark_jax.convert.engine import Table
from spark_jax.convert.tables import bicodec, qwen2, wav2vec2
from spark_jax.convert.tokenizer_files import check_tokenizer, copy_tokenizer
from spark_jax.errors import SparkError
from spark_jax.model_directory.layout import StoredPart
from spark_jax.model_directory.parameters import PARTS, RECORDS


@dataclasses.dataclass(frozen=True)
class ReleasePart:
    """One part in the official layout.

    Attributes:
      folder: name of its folder.
      table: makes the table of its weight file from its section of the configuration.
      read_settings: reads that section from the folder.
      write_settings: writes the folder's other files, from the part, the directory that is made, the type of the weight
        file, and all parts that are written.
    """

    folder: str
    table: Callable[[Any], Table]
    read_settings: Callable[[Path], Any]
    write_settings: Callable[[StoredPart, Path, str, Mapping[str, StoredPart]], None]


def _write_codec(stored: StoredPart, root: Path, _: str, __: Mapping[str, StoredPart]) -> None:
    configuration.write_root_config(root / "config.yaml", stored.config)
    configuration.write_bicodec_config(root / configuration.BICODEC / "config.yaml", stored.config.bicodec)


def _write_wav2vec2(stored: StoredPart, root: Path, _: str, __: Mapping[str, StoredPart]) -> None:
    folder = root / configuration.WAV2VEC2
    configuration.write_wav2vec2_config(folder, stored.config.wav2vec2, stored.config.sample_rate)


def _write_llm(stored: StoredPart, root: Path, dtype: str, parts: Mapping[str, StoredPart]) -> None:
    """The tokenizer goes with it, once it is known to fit the codec."""
    folder, config = root / configuration.LLM, stored.config
    codec = parts["bicodec"].config.bicodec if "bicodec" in parts else None
    tokenizer = check_tokenizer(stored.tokenizer, config.llm, codec)
    end, padding = tokenizer.id("<|im_end|>"), tokenizer.id("<|endoftext|>")
    configuration.write_llm_config(folder, config.llm, dtype, end, padding, config.sampling, config.text)
    copy_tokenizer(stored.tokenizer, folder)


RELEASE_PARTS: Mapping[str, ReleasePart] = {
    "bicodec": ReleasePart(
        configuration.BICODEC,
        bicodec.table,
        lambda folder: configuration.read_bicodec_config(folder / "config.yaml"),
        _write_codec,
    ),
    "wav2vec2": ReleasePart(
        configuration.WAV2VEC2,
        wav2vec2.table,
        configuration.read_wav2vec2_config,
        _write_wav2vec2,
    ),
    "llm": ReleasePart(
        configuration.LLM,
        qwen2.table,
        lambda folder: configuration.read_llm_config(folder / "config.json"),
        _write_llm,
    ),
}


def table(part: str, config: SparkConfig) -> Table:
    """Returns the table of a part's weight file.

    Args:
      part: "bicodec", "wav2vec2" or "llm".
      config: the whole system's.
    """
    return RELEASE_PARTS[part].table(getattr(config, RECORDS[part].section))


def check_parts(parts: Sequence[str]) -> list[str]:
    """Returns the parts in their order.

    Raises:
      SparkError: there is none, or one that does not exist.
    """
    if not parts or set(parts) - set(PARTS):
        raise SparkError(f"parts are {','.join(parts) or 'none'}, expected some of {','.join(PARTS)}")
    return [part for part in PARTS if part in parts]


def read_config(source: Path, parts: Iterable[str] = PARTS, llm: Path | None = None) -> SparkConfig:
    """Reads the system's configuration from the files of an official directory.

    Args:
      source: the directory.
      parts: what is read; the rest keeps the release's values.
      llm: the LLM's folder, where it is another one than that of the directory.

    Raises:
      SparkError: a file is missing or malformed, or a setting is not supported; file and key are named.
    """
    path = source / "config.yaml"
    content = configuration.read_root_config(path) if "bicodec" in parts else {}
    for part in parts:
        release = RELEASE_PARTS[part]
        folder = llm if part == "llm" and llm is not None else source / release.folder
        content[RECORDS[part].section] = dataclasses.asdict(release.read_settings(folder))
        if part == "llm":
            own = {"sampling": configuration.read_sampling(folder), "text": configuration.read_text_config(folder)}
            content |= {name: dataclasses.asdict(section) for name, section in own.items() if section is not None}
    config = from_mapping(SparkConfig, content, str(path))
    configuration.check_sizes(config, str(path))
    return config
