"""Merges a PEFT LoRA adapter into an LLM's weights: W + scaling · B A, in float32, one tensor at a time.

The result computes what the adapted model computes before any merging. An adapter that changes the embedding or the
head of a tied model therefore unties it, unless it says `ensure_weight_tying`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spark_jax.config import Qwen2Config
from spark_jax.convert.formats.tensors import SourceTensor, is_finite, is_float
from spark_jax.convert.tables.qwen2 import EMBEDDING, HEAD
from spark_jax.convert.weights import read_file
from spark_jax.errors import ManyFaultsError, SparkError
from spark_jax.shared.files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # in the order of preference
_PREFIX = "base_model.model."
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module")  # of single layers, too
_FACTORS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
}
_ROWS = 4096  # of a merged matrix at a time

# Settings that say how an adapter was trained, or that are read below: the merge is the same whatever they say.
# fan_in_fan_out is among them: PEFT itself resets it on linear layers and embeddings, and a Qwen has no others.
_KNOWN = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Initializations that leave the base as it was; the others (PiSSA, OLoRA, …) put a part of it into the adapter.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What adapter_config.json says about the merge."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool
    saved: tuple[str, ...]  # modules trained whole
    tied: bool

    def scaling(self, module: str) -> tuple[int, float]:
        """Returns rank and scaling of a module."""
        rank, alpha = _matching(self.rank_pattern, module, self.rank), _matching(self.alpha_pattern, module, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def merge(
    base: Mapping[str, SourceTensor], config: Qwen2Config, adapter: str | Path
) -> tuple[dict[str, SourceTensor], Qwen2Config]:
    """Returns the tensors of an adapted LLM, and its configuration.

    Args:
      base: tensors of the LLM that the adapter was trained on, by their official names.
      config: of that LLM.
      adapter: folder with adapter_config.json and adapter_model.safetensors or adapter_model.bin.

    Returns:
      All tensors, the changed ones float32; the configuration is another one where the head is no longer tied.

    Raises:
      SparkError: a file is missing or malformed; the adapter is of a kind that cannot be merged (DoRA, …); tensors do
        not fit the base (all are listed).
    """
    adapter = Path(adapter)
    settings = _read_settings(adapter / CONFIG)
    path = adapter_files(adapter)[1]
    held = _unwrapped(read_file(path))
    factors, replaced, faults = _sort(held)
    tensors = dict(base)
    if config.tie_word_embeddings:
        config = _untie(tensors, config, settings, factors, replaced, path)
    for name, tensor in replaced.items():
        if name not in tensors:
            faults.append(f"{name} is no tensor of the base")
        elif tensor.shape != tensors[name].shape:
            faults.append(f"{name} is {list(tensor.shape)}, expected {list(tensors[name].shape)}")
        tensors[name] = tensor
    for module, pair in factors.items():
        name = f"{module}.weight"
        rank, scaling = settings.scaling(module)
        if fault := _misfit(module, pair, tensors.get(name), rank):
            faults.append(fault)
            continue
        left, right = (pair["a"], pair["b"]) if module == _module(EMBEDDING) else (pair["b"], pair["a"])
        read = functools.partial(_merged, tensors[name], left, right, scaling, module == _module(EMBEDDING))
        tensors[name] = dataclasses.replace(tensors[name], dtype=np.dtype(np.float32), read=read)
    if faults:
        raise ManyFaultsError({f"{path}: {len(faults)} tensors do not fit": faults})
    for name, tensor in held.items():
        if not is_finite(tensor.read()):
            faults.append(name)
    if faults:
        raise ManyFaultsError({f"{path}: values are not finite": faults})
    return tensors, config


def adapter_files(folder: Path) -> list[Path]:
    """Returns the settings and the weights of an adapter.

    Raises:
      SparkError: it has no weights.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / CONFIG, folder / name]
    raise SparkError(f"{folder}: no adapter's weights; expected {' or '.join(WEIGHTS)}")


def _unwrapped(adapter: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors by PEFT's names, where torch.compile or a parallel wrapper has put its own into them."""
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in adapter}
    if all(name.startswith(f"module.{_PREFIX}") for name in names.values()):
        names = {name: short.removeprefix("module.") for name, short in names.items()}
    return {names[name]: tensor for name, tensor in adapter.items()}


def _merged(base: SourceTensor, left: SourceTensor, right: SourceTensor, scaling: float, flip: bool) -> np.ndarray:
    """base + scaling · left right; `flip`: + scaling · leftᵀ rightᵀ, as PEFT keeps an embedding's factors."""
    values = base.read().astype(np.float32)
    left, right = (factor.read().astype(np.float32) for factor in (left, right))
    if flip:
        left, right = left.T, right.T
    for start in range(0, len(values), _ROWS):
        rows = slice(start, start + _ROWS)
        values[rows] += np.float32(scaling) * (left[rows] @ right)
    return values


def _read_settings(path: Path) -> _Settings:
    content = read_json(path, "a PEFT adapter")
    if not isinstance(content, dict):
        raise SparkError(f"{path}: expected a mapping, found {type(content).__name__}")
    if content.get("peft_type") != "LORA":
        raise SparkError(f"{path}: peft_type is {content.get('peft_type')!r}; only 'LORA' is supported")
    for key, value in content.items():
        if key not in _KNOWN and value:
            raise SparkError(f"{path}: {key} is {value!r}: such an adapter cannot be merged here")
    start = content.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise SparkError(f"{path}: init_lora_weights is {start!r}: the adapter holds a part of the base's weights too")
    numbers = {"r": content.get("r"), "lora_alpha": content.get("lora_alpha")}
    patterns = {key: content.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    for key, pattern in patterns.items():
        if not isinstance(pattern, dict):
            raise SparkError(f"{path}: {key} is {pattern!r}, expected a mapping of modules")
        numbers |= {f"{key}: {name}": value for name, value in pattern.items()}
        for name in pattern:
            try:
                re.compile(name)
            except re.error as error:
                raise SparkError(f"{path}: {key}: {name!r} is no pattern ({error})") from error
    for key, value in numbers.items():
        whole = key == "r" or key.startswith("rank_pattern")
        if type(value) not in ((int,) if whole else (int, float)) or not math.isfinite(value) or (whole and value < 1):
            raise SparkError(f"{path}: {key} is {value!r}, expected a {'rank of at least 1' if whole else 'number'}")
    saved = content.get("modules_to_save") or []
    if not isinstance(saved, list):
        raise SparkError(f"{path}: modules_to_save is {saved!r}, expected a list")
    return _Settings(
        numbers["r"],
        numbers["lora_alpha"],
        patterns["rank_pattern"],
        patterns["alpha_pattern"],
        content.get("use_rslora") is True,
        tuple(map(str, saved)),
        content.get("ensure_weight_tying") is True,
    )


def _sort(
    adapter: Mapping[str, SourceTensor],
) -> tuple[dict[str, dict[str, SourceTensor]], dict[str, SourceTensor], list[str]]:
    """Factors by module, tensors that were trained whole by name, and what is neither."""
    factors: dict[str, dict[str, SourceTensor]] = {}
    replaced: dict[str, SourceTensor] = {}
    faults = []
    for name, tensor in adapter.items():
        own = name.removeprefix(_PREFIX)
        module, mark, kind = own.partition(".lora_")
        if tensor.fault or not is_float(tensor.dtype):
            faults.append(f"{name} {tensor.fault or f'holds {tensor.dtype}, expected floating-point numbers'}")
        elif own == name:
            faults.append(f"{name} does not begin with {_PREFIX}")
        elif not mark:
            replaced[own.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = tensor
        elif f"lora_{kind}" in _FACTORS:
            factors.setdefault(module, {})[_FACTORS[f"lora_{kind}"]] = tensor
        else:
            faults.append(f"{name} is of no known kind")
    return factors, replaced, faults


def _untie(
    tensors: dict[str, SourceTensor],
    config: Qwen2Config,
    settings: _Settings,
    factors: Mapping[str, Any],
    replaced: dict[str, SourceTensor],
    path: Path,
) -> Qwen2Config:
    """Gives a tied model a head of its own (in `tensors`) where the adapter makes the two differ.

    A head that the adapter holds as a mere copy of its embedding is taken out of `replaced`.
    """
    modules = {_module(EMBEDDING), _module(HEAD)}
    apart = modules & factors.keys()
    if not apart and EMBEDDING in replaced and HEAD in replaced and _equal(replaced[EMBEDDING], replaced[HEAD]):
        del replaced[HEAD]
    elif settings.tied and (apart or HEAD in replaced):
        own = min(apart or {_module(HEAD)})
        raise SparkError(
            f"{path.parent / CONFIG}: ensure_weight_tying is True, and {own} has weights of its own: "
            "such an adapter cannot be merged here"
        )
    saved = {module for module in modules if any(re.search(rf"(^|\.){re.escape(s)}$", module) for s in settings.saved)}
    if not apart and HEAD not in replaced and (settings.tied or saved != {_module(EMBEDDING)}):
        if EMBEDDING in replaced:  # it is the head as well; where nobody asked for it, it was saved because it grew
            tensors.pop(HEAD, None)
        return config
    resized = replaced.get(EMBEDDING) if _module(EMBEDDING) not in saved else None
    tensors[HEAD] = resized or tensors[EMBEDDING]
    return dataclasses.replace(config, tie_word_embeddings=False)


def _misfit(module: str, pair: Mapping[str, SourceTensor], base: SourceTensor | None, rank: int) -> str:
    """What keeps a pair of factors from its module; "": nothing."""
    if base is None or len(base.shape) != 2:
        return f"{module} is no linear layer or embedding of the base"
    if missing := {"a", "b"} - pair.keys():
        return f"{module} has no factor {min(missing).upper()}"
    rows, columns = base.shape
    inner, outer = (rows, columns) if module == _module(EMBEDDING) else (columns, rows)
    expected = {"a": (rank, inner), "b": (outer, rank)}
    wrong = {key: pair[key].shape for key, shape in expected.items() if pair[key].shape != shape}
    return "; ".join(
        f"{module}: factor {key.upper()} is {list(shape)}, expected {list(expected[key])}"
        for key, shape in wrong.items()
    )


def _matching(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that ends a module's name (PEFT's get_pattern_key)."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _equal(one: SourceTensor, other: SourceTensor) -> bool:
    return one.shape == other.shape and np.array_equal(one.read(), other.read())
