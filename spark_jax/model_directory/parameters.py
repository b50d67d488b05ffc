"""The parts of a model and their arrays: names, shapes, types and shardings, from the configuration alone."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax.sharding import Mesh

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import BiCodecConfig, SparkConfig
from spark_jax.errors import ManyFaultsError, SparkError, one_line
from spark_jax.qwen2.model import Qwen2
from spark_jax.sharding import tree_shardings, unbox
from spark_jax.shared.pytree import flatten
from spark_jax.wav2vec2.ctc import Wav2Vec2ForCTC
from spark_jax.wav2vec2.model import Wav2Vec2


@dataclasses.dataclass(frozen=True)
class Part:
    """What distinguishes one part of a model from the others.

    Attributes:
      name: also that of its folder below `params`.
      section: the field of `SparkConfig` that holds its sizes.
      module: makes its module from the section and, for a recognizer, the number of labels (else None).
      inputs: shapes and types of inputs that the module can be initialized with, from the section.
      arguments: keyword arguments of the module's call.
      collections: what its variables have on top.
      has_dtype: whether the type that a conversion or a load names applies to its weight matrices; the other parts are
        float32.
      old_folder: name of its folder in the output of trainings before they wrote model directories.
    """

    name: str
    section: str
    module: Callable[[Any, int | None], nn.Module]
    inputs: Callable[[Any], Sequence[jax.ShapeDtypeStruct]]
    old_folder: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    collections: tuple[str, ...] = ("params",)
    has_dtype: bool = False


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _codec_inputs(config: BiCodecConfig) -> list[jax.ShapeDtypeStruct]:
    frames = 8 * math.prod(config.encoder.sample_ratios)
    return [_floats(1, frames, config.encoder.input_channels), _floats(1, 2 * config.mel_params.n_fft)]


RECORDS: Mapping[str, Part] = {
    record.name: record
    for record in (
        Part(
            name="bicodec",
            section="bicodec",
            module=lambda config, _: BiCodec(config),
            inputs=_codec_inputs,
            old_folder="codec",
            arguments={"train": False},
            collections=("params", "batch_stats", "code_statistics"),
        ),
        Part(
            name="wav2vec2",
            section="wav2vec2",
            module=lambda config, _: Wav2Vec2(config),
            inputs=lambda config: [_floats(1, 2 * math.prod(config.conv_stride) * 10)],
            old_folder="wav2vec2",
        ),
        Part(
            name="llm",
            section="llm",
            module=lambda config, _: Qwen2(config),
            inputs=lambda _: [jax.ShapeDtypeStruct((1, 2), jnp.int32)],
            old_folder="llm",
            has_dtype=True,
        ),
        Part(
            name="recognizer",
            section="wav2vec2",
            module=lambda config, labels: Wav2Vec2ForCTC(config, labels),
            inputs=lambda config: [_floats(1, 2 * math.prod(config.conv_stride) * 10)],
            old_folder="ctc",
        ),
    )
}
PARTS = ("bicodec", "wav2vec2", "llm")  # of a text-to-speech system; a directory may have a recognizer besides
RECOGNIZER = "recognizer"

# Leaves that a shorter storage type spares: their precision costs nothing, and norms need it.
_KEEP_FLOAT32 = frozenset({"scale", "bias", "gamma", "alpha", "g", "kernel_g", "mean", "var", "cluster_size"})


def abstract_variables(config: SparkConfig) -> dict[str, Any]:
    """Returns shapes and float32 types (`jax.ShapeDtypeStruct`) of a system's arrays: part → collection → tree.

    Raises:
      SparkError: the configuration's sizes do not fit together.
    """
    return {part: abstract_part(part, getattr(config, RECORDS[part].section)) for part in PARTS}


def abstract_part(part: str, config: Any, labels: int | None = None) -> Any:
    """Returns `abstract_variables` of one part.

    Args:
      part: its name.
      config: its own section of the configuration.
      labels: of a recognizer the number of its labels, see `recognizer_labels`.

    Raises:
      SparkError: the sizes do not fit together.
    """
    return unbox(_boxed_part(part, config, labels))


def target_variables(
    config: SparkConfig,
    parts: Sequence[str] = PARTS,
    llm_dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    labels: int | None = None,
) -> dict[str, Any]:
    """Returns `abstract_variables` of some parts as they shall lie in memory: with types and shardings.

    Args:
      config: the whole system's.
      parts: those wanted.
      llm_dtype: type of the LLM's weight matrices; all else is float32.
      mesh: where each array is divided as the table of `spark_jax.sharding` says; None: the default device.
      labels: see `abstract_part`.

    Raises:
      SparkError: as `abstract_variables`, or the mesh does not divide an axis; all are listed at once.
    """
    boxed = {part: _boxed_part(part, getattr(config, RECORDS[part].section), labels) for part in parts}
    wanted = {
        part: with_weight_dtype(tree, llm_dtype) if RECORDS[part].has_dtype else tree
        for part, tree in unbox(boxed).items()
    }
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, wanted)
    else:
        shardings = tree_shardings(mesh, boxed)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), wanted, shardings
    )


def recognizer_labels(variables: Any) -> int:
    """Returns the number of labels (the blank included) that a recognizer's head has; 1 where the tree has no head."""
    bias = flatten(variables).get("params/head/bias")
    return 1 if bias is None else bias.shape[-1]


def with_weight_dtype(tree: Any, dtype: Any) -> Any:
    """Returns the abstract tree with its weight matrices in `dtype`; norms, biases, statistics … keep theirs."""

    def retype(path, leaf):
        keep = path[-1].key in _KEEP_FLOAT32
        return leaf if keep else jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(retype, tree)


def cast_weights(tree: Any, dtype: Any) -> Any:
    """Returns the tree (on the host) with its weight matrices in `dtype`; None leaves it as it is."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), tree, with_weight_dtype(tree, dtype))


def differences(found: Any, expected: Any) -> list[str]:
    """Returns a line for every tensor of a tree that another tree lacks, or that has another shape there."""
    have, want = ({name: tuple(leaf.shape) for name, leaf in flatten(tree).items()} for tree in (found, expected))
    problems = [f"missing {name} {list(shape)}" for name, shape in want.items() if name not in have]
    problems += [f"extra {name} {list(shape)}" for name, shape in have.items() if name not in want]
    return problems + [
        f"misshapen {name} {list(have[name])}, expected {list(shape)}"
        for name, shape in want.items()
        if name in have and have[name] != shape
    ]


def check_fit(where: Any, found: Any, expected: Any) -> None:
    """Checks that two trees have arrays of the same names and shapes.

    Args:
      where: what the message begins with.

    Raises:
      ManyFaultsError: they differ; it has all `differences`.
    """
    if problems := differences(found, expected):
        raise ManyFaultsError({f"{where}: {len(problems)} tensors do not fit": problems})


@functools.lru_cache(maxsize=16)
def _boxed_part(part: str, config: Any, labels: int | None) -> Any:
    """Shapes of a part in Linen's boxes, which name the axes. Tracing a codec takes a second: kept."""
    record = RECORDS[part]
    try:
        module = record.module(config, labels)
        return jax.eval_shape(
            functools.partial(module.init, **record.arguments), jax.random.key(0), *record.inputs(config)
        )
    except (TypeError, ValueError, ArithmeticError, FlaxError) as error:
        raise SparkError(f"{part}: the sizes do not fit together ({one_line(error, 300)})") from error
