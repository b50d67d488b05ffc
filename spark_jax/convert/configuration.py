"""The configuration files of the release's layout, read and written.

config.yaml                     sample rate, hop, length of the reference clip
BiCodec/config.yaml             the codec's sizes
wav2vec2-…/config.json, preprocessor_config.json, LLM/config.json: transformers' own
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spark_jax.config import (
    RELEASE,
    BiCodecConfig,
    MelConfig,
    QuantizerConfig,
    Qwen2Config,
    SamplingConfig,
    SparkConfig,
    SpeakerEncoderConfig,
    VocosConfig,
    Wav2Vec2Config,
    WaveGeneratorConfig,
    from_mapping,
)
from spark_jax.convert.causes import check_settings, refuse_pointer
from spark_jax.errors import SparkError, one_line
from spark_jax.shared.files import read_text, write_json, write_text
from spark_jax.text_config import TextConfig

T = TypeVar("T")

BICODEC, WAV2VEC2, LLM = "BiCodec", "wav2vec2-large-xlsr-53", "LLM"  # the parts' folders

_ROOT_FIELDS = ("sample_rate", "latent_hop_length", "ref_segment_duration", "volume_normalize")
_CODEC_SECTIONS: dict[str, type] = {
    "mel_params": MelConfig,
    "encoder": VocosConfig,
    "decoder": WaveGeneratorConfig,
    "quantizer": QuantizerConfig,
    "speaker_encoder": SpeakerEncoderConfig,
    "prenet": VocosConfig,
    "postnet": VocosConfig,
}
_CODEC_REQUIRED: dict[str, dict[str, Any]] = {"quantizer": {"use_l2_normlize": True}}
# What the release leaves to its code, whose constructors do not take it: written only where it differs.
_CODEC_OMITTED = {
    "encoder": {"condition_dim", "use_tanh_at_final"},
    "decoder": {"source"},
    "postnet": {"condition_dim"},
    "quantizer": {"decay"},
    "speaker_encoder": {field.name for field in dataclasses.fields(SpeakerEncoderConfig)}
    - {"input_dim", "out_dim", "latent_dim", "token_num", "fsq_levels", "fsq_num_quantizers"},
}

# What a file may lack besides: the release's own leaves it to the code.
_CODEC_OPTIONAL = {"postnet": {"sample_ratios"}}

# Settings that select another architecture: with other values the weights would load and sound wrong.
_WAV2VEC2_REQUIRED = {
    "model_type": "wav2vec2",
    "feat_extract_norm": "layer",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "do_stable_layer_norm": True,
    "add_adapter": False,
    "adapter_attn_dim": None,
    "conv_pos_batch_norm": False,
}
_PREPROCESSOR_REQUIRED = {"do_normalize": True, "feature_size": 1, "padding_value": 0.0}
_LLM_REQUIRED = {
    "qwen2": {"hidden_act": "silu", "attention_bias": True, "qk_norm": False, "quantization_config": None},
    "qwen3": {"hidden_act": "silu", "attention_bias": False, "qk_norm": True, "quantization_config": None},
}
# In generation_config.json: its sampling is what the model was given here, not what a base model came with.
_OUR_SAMPLING = "spark_jax_sampling"
_OUR_TEXT = "spark_jax_text"  # there, too: what the model knows of text, where that is not what the release knows
_SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingConfig))
_QWEN3_HEAD_DIM = 128  # of Qwen3 where its config.json does not say


def read_root_config(path: Path) -> dict[str, Any]:
    """Reads `config.yaml`: the fields of a SparkConfig that are no part's own.

    Raises:
      SparkError: the file cannot be read, or one of them is missing.
    """
    return _section(_read(path, yaml.safe_load), _ROOT_FIELDS, str(path))


def read_bicodec_config(path: Path) -> BiCodecConfig:
    """Reads `BiCodec/config.yaml`; keys that the release leaves to its code (ECAPA's sizes, …) may be given too."""
    content = _section(_read(path, yaml.safe_load), ("audio_tokenizer",), str(path))["audio_tokenizer"]
    sections = _section(content, tuple(_CODEC_SECTIONS), str(path))
    config = {}
    for name, cls in _CODEC_SECTIONS.items():
        origin, required = f"{path}: {name}", _CODEC_REQUIRED.get(name, {})
        if not isinstance(sections[name], Mapping):
            raise SparkError(f"{origin} is {sections[name]!r}, expected a mapping")
        _require(sections[name], required, origin)
        optional = _CODEC_OMITTED.get(name, set()) | _CODEC_OPTIONAL.get(name, set())
        _section(sections[name], [f.name for f in dataclasses.fields(cls) if f.name not in optional], origin)
        if name == "decoder" and sections[name].get("source") is not None:
            raise SparkError(f"{origin}: source is {sections[name]['source']!r}; the release has no harmonic source")
        config[name] = from_mapping(cls, {k: v for k, v in sections[name].items() if k not in required}, origin)
        check_sizes(config[name], origin)
    return BiCodecConfig(**config)


def read_wav2vec2_config(folder: Path) -> Wav2Vec2Config:
    """Reads `config.json` and `preprocessor_config.json` of the feature extractor.

    `feature_layers`, which transformers does not know, may name other hidden states than the release's code taps.
    """
    path = folder / "preprocessor_config.json"
    _require(_read(path, json.loads), _PREPROCESSOR_REQUIRED, str(path))
    path = folder / "config.json"
    content = _read(path, json.loads)
    _require(content, _WAV2VEC2_REQUIRED, str(path))
    names = [field.name for field in dataclasses.fields(Wav2Vec2Config) if field.name != "feature_layers"]
    taps = {"feature_layers": content["feature_layers"]} if "feature_layers" in content else {}
    config = from_mapping(Wav2Vec2Config, _section(content, names, str(path)) | taps, str(path))
    check_sizes(config, str(path))
    if config.num_hidden_layers < max(config.feature_layers):
        raise SparkError(
            f"{path}: num_hidden_layers is {config.num_hidden_layers}; the features need hidden state "
            f"{max(config.feature_layers)}"
        )
    return config


def read_llm_config(path: Path) -> Qwen2Config:
    """Reads `config.json` of a Qwen2, Qwen2.5 or Qwen3 as transformers writes it, version 4 or 5."""
    content = _read(path, json.loads)
    kind = content.get("model_type")
    if kind not in _LLM_REQUIRED:
        raise SparkError(f"{path}: model_type is {kind!r}, expected one of {', '.join(_LLM_REQUIRED)}")
    check_settings(content, path)
    _require(content, _LLM_REQUIRED[kind], str(path))
    own = ("head_dim", "attention_bias", "qk_norm", "rope_theta", "tie_word_embeddings")
    names = [field.name for field in dataclasses.fields(Qwen2Config) if field.name not in own]
    head_dim = content.get("head_dim")
    if head_dim is None and kind == "qwen3":
        head_dim = _QWEN3_HEAD_DIM
    values = _section(content, names, str(path)) | {
        "rope_theta": _rope_theta(content, str(path)),
        "tie_word_embeddings": content.get("tie_word_embeddings", False),
        "head_dim": head_dim,
        "attention_bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
    }
    if type(values["num_hidden_layers"]) is int and _slides(content, values["num_hidden_layers"]):
        raise SparkError(f"{path}: use_sliding_window: layers with sliding-window attention are not supported")
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"):
        if type(values[name]) is not int or values[name] < 1:
            raise SparkError(f"{path}: {name} is {values[name]!r}, expected a positive integer")
    if values["num_attention_heads"] % values["num_key_value_heads"]:
        raise SparkError(
            f"{path}: num_attention_heads is {values['num_attention_heads']}, expected a multiple of "
            f"num_key_value_heads, {values['num_key_value_heads']}"
        )
    if head_dim is None and values["hidden_size"] % values["num_attention_heads"]:
        raise SparkError(f"{path}: hidden_size is no multiple of num_attention_heads, and head_dim is not given")
    config = from_mapping(Qwen2Config, values, str(path))
    check_sizes(config, str(path))
    return config


def read_sampling(folder: Path) -> SamplingConfig | None:
    """Reads the sampling that `write_llm_config` wrote into an LLM's folder; None: the folder is another's.

    The release's code has its own defaults, whatever the file of that name says that a base model came with.

    Raises:
      SparkError: the file cannot be read, or its numbers are none.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    content = _read(path, json.loads)
    if content.get(_OUR_SAMPLING) is not True:
        return None
    return from_mapping(SamplingConfig, _section(content, _SAMPLING_FIELDS, str(path)), str(path))


def read_text_config(folder: Path) -> TextConfig | None:
    """Reads what `write_llm_config` wrote into an LLM's folder of the text that it knows; None: nothing.

    Raises:
      SparkError: the file cannot be read, or holds no such section.
    """
    path = folder / "generation_config.json"
    content = _read(path, json.loads).get(_OUR_TEXT) if path.is_file() else None
    if content is None:
        return None
    if not isinstance(content, Mapping):
        raise SparkError(f"{path}: {_OUR_TEXT} is {content!r}, expected a mapping")
    return from_mapping(TextConfig, content, f"{path}: {_OUR_TEXT}")


def write_root_config(path: Path, config: SparkConfig) -> None:
    """Writes `config.yaml`; the high-pass of the release's training is named, as there."""
    content = {name: getattr(config, name) for name in _ROOT_FIELDS}
    write_text(path, yaml.safe_dump(content | {"highpass_cutoff_freq": 40}, sort_keys=False))


def write_bicodec_config(path: Path, config: BiCodecConfig) -> None:
    """Writes `BiCodec/config.yaml`, with the keys of the release and, where they differ from its code, those beyond."""
    content: dict[str, Any] = {}
    for name, cls in _CODEC_SECTIONS.items():
        section = getattr(config, name)
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        omitted = _CODEC_OMITTED.get(name, set())
        content[name] = {
            key: value
            for key, value in _plain(dataclasses.asdict(section)).items()
            if key not in omitted or getattr(section, key) != defaults[key]
        } | _CODEC_REQUIRED.get(name, {})
    write_text(path, yaml.safe_dump({"audio_tokenizer": content}, sort_keys=False))


def write_wav2vec2_config(folder: Path, config: Wav2Vec2Config, sample_rate: int) -> None:
    """Writes `config.json` and `preprocessor_config.json`, for transformers' Wav2Vec2Model.

    `num_hidden_layers` counts the layers that the weight file has: those up to the last tap, and one idle layer
    above (see convert.wav2vec2).
    """
    content = _plain(dataclasses.asdict(config)) | _WAV2VEC2_REQUIRED
    content |= {
        "architectures": ["Wav2Vec2Model"],
        "num_hidden_layers": max(config.feature_layers) + 1,
        "num_feat_extract_layers": len(config.conv_dim),
        "torch_dtype": "float32",
    }
    if config.feature_layers == Wav2Vec2Config().feature_layers:
        del content["feature_layers"]
    write_json(folder / "config.json", content)
    preprocessor = _PREPROCESSOR_REQUIRED | {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "sampling_rate": sample_rate,
        "padding_side": "right",
        "return_attention_mask": True,
    }
    write_json(folder / "preprocessor_config.json", preprocessor)


def write_llm_config(
    folder: Path,
    config: Qwen2Config,
    dtype: str,
    end: int,
    padding: int,
    sampling: SamplingConfig = RELEASE.sampling,
    text: TextConfig = RELEASE.text,
) -> None:
    """Writes `config.json` and `generation_config.json`, in the form that transformers 4 and 5 both read.

    Args:
      dtype: "float32", "bfloat16" or "float16": the type of the weight file.
      end, padding: ids of the tokens that end a sequence and fill it up.
      sampling: what generation_config.json recommends.
      text: what the model knows of text; kept there where it is not what the release knows.

    Raises:
      SparkError: the decoder is neither a Qwen2 nor a Qwen3.
    """
    kinds = {(True, False): "qwen2", (False, True): "qwen3"}
    kind = kinds.get((config.attention_bias, config.qk_norm))
    if kind is None:
        raise SparkError(
            f"llm: attention_bias {config.attention_bias} with qk_norm {config.qk_norm} is neither Qwen2 nor Qwen3; "
            "transformers has no such model"
        )
    content = dataclasses.asdict(config)
    del content["qk_norm"]
    if kind == "qwen2":
        del content["attention_bias"]
        if config.head_dim * config.num_attention_heads == config.hidden_size:
            del content["head_dim"]
    content |= {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": dtype,
        "eos_token_id": end,
        "pad_token_id": padding,
    }
    write_json(folder / "config.json", content)
    generation = {"do_sample": True, **dataclasses.asdict(sampling), "max_new_tokens": 3000, _OUR_SAMPLING: True}
    if text != RELEASE.text:
        generation[_OUR_TEXT] = dataclasses.asdict(text)
    write_json(folder / "generation_config.json", generation | {"eos_token_id": end, "pad_token_id": padding})


def check_sizes(config: Any, origin: str) -> None:
    """Checks a configuration read from a file: every integer is a size, at least 1; every other number is finite.

    Args:
      config: a dataclass of sizes.
      origin: the file, for the message.

    Raises:
      SparkError: a number is out of range.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, TextConfig):
            continue  # no sizes, and checked when it is made
        if dataclasses.is_dataclass(value):
            check_sizes(value, f"{origin}: {field.name}")
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and number < 1:
                raise SparkError(f"{origin}: {field.name} is {value}, expected sizes of at least 1")
            if isinstance(number, float) and not (math.isfinite(number) and number >= 0):
                raise SparkError(f"{origin}: {field.name} is {value}, expected a finite number of at least 0")
        if value == ():
            raise SparkError(f"{origin}: {field.name} is empty")


def _rope_theta(content: Mapping[str, Any], origin: str) -> Any:
    """Base of the rotary positions; any scaling of them is another model."""
    for key in ("rope_scaling", "rope_parameters"):
        settings = content.get(key)
        if settings is None:
            continue
        if not isinstance(settings, Mapping):
            raise SparkError(f"{origin}: {key} is {settings!r}, expected a mapping")
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind != "default":
            raise SparkError(f"{origin}: {key}: rope_type is {kind!r}; only 'default' is supported")
        if unknown := settings.keys() - {"rope_type", "type", "rope_theta"}:
            raise SparkError(f"{origin}: {key}: {min(unknown)} is not supported")
        content = content | ({"rope_theta": settings["rope_theta"]} if "rope_theta" in settings else {})
    return _section(content, ("rope_theta",), origin)["rope_theta"]


def _slides(content: Mapping[str, Any], layers: int) -> bool:
    """Whether some layer's attention has a sliding window (transformers' Qwen2Config.__post_init__)."""
    kinds = content.get("layer_types")
    if kinds is not None:
        return not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)
    first = content.get("max_window_layers", 0)
    in_use = content.get("use_sliding_window", False) and content.get("sliding_window", 4096) is not None
    return bool(in_use) and not (type(first) is int and first >= layers)


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    refuse_pointer(path)
    text = read_text(path)
    try:
        content = parse(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise SparkError(f"{path}: malformed ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise SparkError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content


def _section(content: Any, keys: Iterable[str], origin: str) -> dict[str, Any]:
    keys = tuple(keys)
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


def _plain(content: Any) -> Any:
    """Tuples as lists, for YAML and JSON."""
    return json.loads(json.dumps(content))
