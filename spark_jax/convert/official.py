"""The release's directory layout → one model directory.

    OFFICIAL/config.yaml
    OFFICIAL/BiCodec/{config.yaml, model.safetensors}
    OFFICIAL/wav2vec2-large-xlsr-53/{config.json, preprocessor_config.json, pytorch_model.bin}
    OFFICIAL/LLM/{config.json, model.safetensors, tokenizer files}

A model.safetensors may stand in place of pytorch_model.bin.

One part is read, converted and written before the next, so that memory holds the largest part, not the sum.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import yaml

from spark_jax import model_directory
from spark_jax.config import (
    BiCodecConfig,
    MelConfig,
    QuantizerConfig,
    Qwen2Config,
    SparkConfig,
    SpeakerEncoderConfig,
    VocosConfig,
    Wav2Vec2Config,
    WaveGeneratorConfig,
    from_mapping,
)
from spark_jax.convert import bicodec, qwen2, wav2vec2
from spark_jax.convert.engine import import_tensors
from spark_jax.convert.safetensors_file import read_safetensors
from spark_jax.convert.tensors import SourceTensor
from spark_jax.convert.torch_pickle import read_torch_pickle
from spark_jax.errors import SparkError
from spark_jax.tokenizer import SparkTokenizer

T = TypeVar("T")

WAV2VEC2 = "wav2vec2-large-xlsr-53"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip

# Settings that select another architecture: with other values the weights would load and sound wrong.
_WAV2VEC2_REQUIRED = {
    "model_type": "wav2vec2", "feat_extract_norm": "layer", "feat_extract_activation": "gelu",
    "hidden_act": "gelu", "do_stable_layer_norm": True, "add_adapter": False, "adapter_attn_dim": None,
    "conv_pos_batch_norm": False,
}  # fmt: skip
_PREPROCESSOR_REQUIRED = {"do_normalize": True, "feature_size": 1, "padding_value": 0.0}
_QWEN2_REQUIRED = {
    "model_type": "qwen2", "hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False,
}  # fmt: skip


def convert(source: str | Path, destination: str | Path, dtype: str = "float32") -> model_directory.ModelInfo:
    """Converts an official directory to a model directory.

    Args:
      source: the official directory.
      destination: the model directory to make; must not exist, or be empty. It appears when it is complete.
      dtype: "float32" or "bfloat16": storage type of the LLM's weight matrices. Its norms and biases and
        the whole of BiCodec and wav2vec2 are float32 always.

    Raises:
      SparkError: a file is missing, damaged or tries to run code; a setting is not supported; tensors are
        missing, extra or misshapen (all of a file are listed at once); the tokenizer lacks Spark tokens; the
        destination is taken.
    """
    source = Path(source)
    if dtype not in DTYPES:
        raise SparkError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    config = read_config(source)
    check_tokenizer(source / "LLM", config)
    targets = model_directory.abstract_variables(config)
    targets["llm"] = model_directory.with_weight_dtype(targets["llm"], DTYPES[dtype])
    files = {
        "bicodec": source / "BiCodec" / "model.safetensors",
        "wav2vec2": _wav2vec2_file(source / WAV2VEC2),
        "llm": source / "LLM" / "model.safetensors",
    }
    with model_directory.new_directory(destination) as folder:
        model_directory.write_config(folder, config)
        _copy_tokenizer(source / "LLM", folder / "tokenizer")
        for part, file in files.items():
            model_directory.write_part(folder, part, read_part(part, file, config, targets[part]))
        model_directory.write_file_list(folder)
    return model_directory.info(destination)


def read_part(part: str, file: Path, config: SparkConfig, target: Any) -> dict[str, Any]:
    """The variables of "bicodec", "wav2vec2" or "llm" from its weight file.

    Args:
      target: shapes and types of the result, see `model_directory.abstract_variables`.

    Returns:
      Numpy arrays: collection → tree.
    """
    tensors = _without_parametrizations(_READERS[file.suffix](file))
    if part == "bicodec":
        rules, ignored = bicodec.rules(config.bicodec), bicodec.IGNORED
    elif part == "wav2vec2":
        tensors = wav2vec2.canonical_names(tensors)
        rules, ignored = wav2vec2.rules(config.wav2vec2), wav2vec2.ignored(config.wav2vec2)
    else:
        rules, ignored = qwen2.rules(config.llm), qwen2.ignored(config.llm)
    return import_tensors(rules, tensors, target, origin=str(file), ignored=ignored)


def read_config(source: str | Path) -> SparkConfig:
    """The whole system's configuration from the four files of an official directory.

    Raises:
      SparkError: a file is missing or malformed, or a setting is not supported; file and key are named.
    """
    source = Path(source)
    path = source / "config.yaml"
    fields = ("sample_rate", "latent_hop_length", "ref_segment_duration", "volume_normalize")
    content = _section(_read(path, yaml.safe_load), fields, str(path))
    config = from_mapping(
        SparkConfig,
        content
        | {
            "bicodec": dataclasses.asdict(read_bicodec_config(source / "BiCodec" / "config.yaml")),
            "wav2vec2": dataclasses.asdict(read_wav2vec2_config(source / WAV2VEC2)),
            "llm": dataclasses.asdict(read_qwen2_config(source / "LLM" / "config.json")),
        },
        str(path),
    )
    hop = math.prod(config.bicodec.decoder.rates)
    if hop != config.latent_hop_length:
        raise SparkError(f"{path}: latent_hop_length is {config.latent_hop_length}, the codec's rates give {hop}")
    return config


def read_bicodec_config(path: Path) -> BiCodecConfig:
    """`BiCodec/config.yaml`; keys that the release leaves to its code (ECAPA's sizes, …) may be given too."""
    content = _read(path, yaml.safe_load)
    parts: dict[str, tuple[type, dict[str, Any]]] = {
        "mel_params": (MelConfig, {}),
        "encoder": (VocosConfig, {}),
        "decoder": (WaveGeneratorConfig, {}),
        "quantizer": (QuantizerConfig, {"use_l2_normlize": True}),
        "speaker_encoder": (SpeakerEncoderConfig, {}),
        "prenet": (VocosConfig, {}),
        "postnet": (VocosConfig, {}),
    }
    sections = _section(_section(content, ("audio_tokenizer",), str(path))["audio_tokenizer"], tuple(parts), str(path))
    config = {}
    for name, (cls, required) in parts.items():
        origin = f"{path}: {name}"
        if not isinstance(sections[name], Mapping):
            raise SparkError(f"{origin} is {sections[name]!r}, expected a mapping")
        _require(sections[name], required, origin)
        config[name] = from_mapping(cls, {k: v for k, v in sections[name].items() if k not in required}, origin)
    return BiCodecConfig(**config)


def read_wav2vec2_config(folder: Path) -> Wav2Vec2Config:
    """`config.json` and `preprocessor_config.json` of the feature extractor."""
    path = folder / "preprocessor_config.json"
    preprocessor = _read(path, json.loads)
    _require(preprocessor, _PREPROCESSOR_REQUIRED, str(path))
    path = folder / "config.json"
    content = _read(path, json.loads)
    _require(content, _WAV2VEC2_REQUIRED, str(path))
    config = _fields(Wav2Vec2Config, content, str(path), defaulted=("feature_layers",))
    if config.num_hidden_layers < max(config.feature_layers):
        raise SparkError(
            f"{path}: num_hidden_layers is {config.num_hidden_layers}; the features need hidden state "
            f"{max(config.feature_layers)}"
        )
    return config


def read_qwen2_config(path: Path) -> Qwen2Config:
    """`LLM/config.json` in transformers' older form or that of version 5, which nests the rotary settings."""
    content = _read(path, json.loads)
    if isinstance(content.get("rope_parameters"), Mapping):
        rotary = content["rope_parameters"]
        _require(rotary, {"rope_type": "default"}, f"{path}: rope_parameters")
        content = content | {"rope_theta": rotary.get("rope_theta", content.get("rope_theta"))}
    _require(content, _QWEN2_REQUIRED, str(path))
    config = _fields(Qwen2Config, content, str(path))
    _require(content, {"head_dim": config.head_dim}, str(path))
    return config


def check_tokenizer(folder: Path, config: SparkConfig) -> None:
    """Raises a SparkError unless the tokenizer has every token of the codec and fits the LLM's embedding."""
    tokenizer = SparkTokenizer.load(folder)
    counts = {
        "semantic": (len(tokenizer.semantic_ids), config.bicodec.quantizer.codebook_size),
        "global": (len(tokenizer.global_ids), math.prod(config.bicodec.speaker_encoder.fsq_levels)),
    }
    for kind, (found, expected) in counts.items():
        if found != expected:
            raise SparkError(f"{folder}: the tokenizer has {found} {kind} tokens, the codec has {expected} codes")
    if tokenizer.vocab_size > config.llm.vocab_size:
        raise SparkError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the LLM's vocab_size is {config.llm.vocab_size}"
        )


_READERS: dict[str, Callable[[Path], dict[str, SourceTensor]]] = {
    ".safetensors": read_safetensors,
    ".bin": read_torch_pickle,
}


def _wav2vec2_file(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise SparkError(f"{folder}: no weights; expected model.safetensors or pytorch_model.bin")


def _without_parametrizations(tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """torch renamed weight norm's tensors; files of either age are read under the older names."""
    renamed = {
        ".parametrizations.weight.original0": ".weight_g",
        ".parametrizations.weight.original1": ".weight_v",
    }
    names = {}
    for name, tensor in tensors.items():
        for ending, older in renamed.items():
            if name.endswith(ending):
                name = name.removesuffix(ending) + older
        names[name] = tensor
    return names


def _copy_tokenizer(source: Path, destination: Path) -> None:
    destination.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SparkError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise SparkError(f"{path}: malformed ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise SparkError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content


def _section(content: Any, keys: tuple[str, ...], origin: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise SparkError(f"{origin}: expected a mapping with {', '.join(keys)}")
    if missing := [key for key in keys if key not in content]:
        raise SparkError(f"{origin}: {', '.join(missing)} missing")
    return {key: content[key] for key in keys}


def _require(content: Mapping[str, Any], required: Mapping[str, Any], origin: str) -> None:
    """Settings that, where they are given, must have these values."""
    for key, expected in required.items():
        if key in content and content[key] != expected:
            raise SparkError(f"{origin}: {key} is {content[key]!r}; only {expected!r} is supported")


def _fields(cls: type[T], content: Mapping[str, Any], origin: str, defaulted: tuple[str, ...] = ()) -> T:
    """A dataclass of the keys that are its fields; the rest are settings of training and output."""
    names = tuple(field.name for field in dataclasses.fields(cls) if field.name not in defaulted)
    return from_mapping(cls, _section(content, names, origin), origin)
