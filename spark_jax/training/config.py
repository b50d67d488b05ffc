"""Training configurations: YAML that holds only what differs from the defaults, and `--set`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from spark_jax.config import from_mapping, to_mapping
from spark_jax.data.config import AudioDataConfig, Sources, TokenDataConfig
from spark_jax.errors import SparkError
from spark_jax.nn.attention import AttentionBackend
from spark_jax.qwen2.model import Remat
from spark_jax.training.optimizer import OptimizerConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices on each mesh axis, data -1 takes all that the others leave; and what is told to their compiler."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    # On CPUs a step's temporaries are one block, cleared anew by the system at every step; in blocks of so many MB,
    # smaller than 32, malloc keeps them. For small models: with arrays larger than a block, memory grows instead.
    # The compilation cache cannot keep such steps: each start compiles them.
    cpu_block_mb: int | None = None


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length and rhythm of a run, counted in steps."""

    steps: int = 1000
    log_every: int = 20
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2  # the newest
    keep_best: int = 0  # and those with the least validation metric; the best one's parts go to the folder `best`
    best_metric: str = "loss"
    max_skipped: int = 100  # updates left out in a row, because a gradient was not finite, after which the run ends
    seed: int = 0
    profile: tuple[int, int] | None = None  # first step traced into the folder `profile`, and the one after the last


@dataclasses.dataclass(frozen=True)
class CTCTrainingConfig:
    """A wav2vec2 encoder with a CTC head, trained on the corpus transcripts (train/wav2vec2.py)."""

    corpus: str = "corpus"  # folder with metadata.jsonl
    model: str | None = None  # YAML of a SparkConfig; None: the release's sizes
    target: Literal["phonemes", "text"] = "phonemes"
    aligned: bool = False  # the corpus says when each phoneme is spoken: tools/align_corpus.py
    fourier_front_end: bool = False  # the first convolution starts as a Fourier bank: wav2vec2/fourier.py
    data: AudioDataConfig = AudioDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()


@dataclasses.dataclass(frozen=True)
class LLMTrainingConfig:
    """The speech-token language model (train/llm.py)."""

    # From tools/encode_corpus.py or tools/make_records.py; several with weights: [{path: …, weight: 0.5}, …]
    tokens: Sources = "tokens.jsonl"
    tokenizer: str = "bytes"  # a folder, a ranks file (qwen.tiktoken), or "bytes": see build_tokenizer
    model: str | None = None  # YAML of a SparkConfig; None: the release's sizes
    init_from: str | None = None  # parameters to start from (a model part)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    accumulate: int = 1  # micro-batches per update
    loss_chunk: int = 1024  # tokens of a device whose logits exist at a time
    attention: AttentionBackend = "auto"  # by the devices; "blockwise" is for CPUs: nn/attention.py
    remat: Remat = "none"  # what is computed again for the gradient: qwen2/model.py
    unroll_layers: int = 1  # layers written out in one body of the loop over them: qwen2/model.py
    data: TokenDataConfig = TokenDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig(
        schedule="inverse_sqrt", warmup_steps=5000, floor=1e-5, decay_factor=0.5, decay_factor_step=400_000,
        betas=(0.9, 0.96), weight_decay=1e-6,
    )
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()


def load_config(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """A configuration from a YAML file (None: the defaults) and overrides `a.b=value` (values read as YAML).

    Raises:
      SparkError: a file that cannot be read, an unknown key, or a value of a wrong type; the message names
        the file and the key.
    """
    source, data = "defaults", {}
    if path is not None:
        source = str(path)
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise SparkError(f"{source}: cannot be read ({error})") from error
        except yaml.YAMLError as error:
            raise SparkError(f"{source}: not YAML ({' '.join(str(error).split())})") from error
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise SparkError(f"--set {override}: expected key=value")
        _assign(data, key.split("."), yaml.safe_load(value), override)
        source = f"{source} with --set {override}" if override == overrides[-1] else source
    # Merged over the defaults, so that a section that sets one key keeps this run's other defaults.
    return from_mapping(cls, _merge(to_mapping(cls()), data), source) if isinstance(data, dict) else (
        from_mapping(cls, data, source)
    )


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if nested else value
    return merged


def _assign(data: Any, path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        if not isinstance(data, dict) or not isinstance(data.setdefault(key, {}), dict):
            raise SparkError(f"--set {override}: {key} is not a mapping")
        data = data[key]
    data[path[-1]] = value
