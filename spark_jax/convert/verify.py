"""Compares a converted model with its source in PyTorch (transformers): hidden states, logits, greedy tokens.

Needs the extra `parity`. Both sides compute in float32; where the model stores the LLM's matrices in a shorter type,
those of the source are rounded to it first, so that what is left is the arithmetic. BiCodec has no implementation
that a package carries: `tools/verify_reference.py` compares it with a checkout of the official repository.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from spark_jax.config import Qwen2Config, SparkConfig, Wav2Vec2Config
from spark_jax.convert import weights
from spark_jax.convert.configuration import LLM, WAV2VEC2
from spark_jax.convert.engine import Table
from spark_jax.convert.hub import local_adapter, local_directory, local_llm
from spark_jax.convert.tables import qwen2, wav2vec2
from spark_jax.convert.wrappers import inner_names
from spark_jax.errors import SparkError, one_line
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.layout import holds_part
from spark_jax.nn.embedding import Embedding
from spark_jax.qwen2.cache import init_cache
from spark_jax.qwen2.model import DecoderLayer, Qwen2
from spark_jax.shared.extra import needs_extra
from spark_jax.text.prompt import cloning_prompt
from spark_jax.text.tokenizer import SparkTokenizer
from spark_jax.wav2vec2.model import Wav2Vec2, normalize_input

TOLERANCE = 1e-5  # largest difference over largest value; two versions of PyTorch differ by 1.5e-6
NEW_TOKENS = 32
TEXT = "The children played in the water all day."
SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One array of both sides."""

    name: str
    largest: float  # largest absolute value of the reference
    difference: float  # largest absolute difference
    tolerance: float = TOLERANCE
    absolute: bool = False  # the tolerance is one of the difference itself

    @property
    def relative(self) -> float:
        """The difference in units of the largest value."""
        return self.difference / self.largest if self.largest else self.difference

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance."""
        return (self.difference if self.absolute else self.relative) <= self.tolerance


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """The differences, and tokens of both sides that have to be the same: name → (ours, the reference's)."""

    rows: tuple[Row, ...]
    ids: dict[str, tuple[list[int], list[int]]]

    @property
    def passed(self) -> bool:
        """Whether all arrays are within their tolerances and all tokens the same."""
        return all(row.passed for row in self.rows) and all(a == b for a, b in self.ids.values())

    def __str__(self) -> str:
        lines = [f"{'':28} {'largest value':>14} {'difference':>12} {'relative':>10}"]
        for row in self.rows:
            mark = "" if row.passed else f"  above {row.tolerance:g}{' absolute' if row.absolute else ''}"
            lines.append(f"{row.name:28} {row.largest:14.4g} {row.difference:12.3g} {row.relative:10.2g}{mark}")
        for name, (ours, theirs) in self.ids.items():
            same = sum(a == b for a, b in zip(ours, theirs, strict=False))
            lines.append(f"{name}: {same} of {max(len(ours), len(theirs))} identical")
        return "\n".join([*lines, "equal to PyTorch" if self.passed else "NOT equal to PyTorch"])


def compare(name: str, ours: Any, reference: Any, **judged: Any) -> Row:
    """Returns the row of two arrays.

    Args:
      name: of the row.
      ours, reference: of one shape.
      **judged: the row's `tolerance` and `absolute`.

    Raises:
      SparkError: their shapes differ.
    """
    ours, reference = (np.asarray(array, np.float64) for array in (ours, reference))
    if ours.shape != reference.shape:
        raise SparkError(f"{name}: shape {list(ours.shape)}, PyTorch's is {list(reference.shape)}")
    difference = np.abs(ours - reference)
    # A NaN on either side must not look like agreement.
    worst = np.inf if not np.isfinite(difference).all() else difference.max(initial=0.0)
    return Row(name, float(np.abs(reference).max(initial=0.0)), float(worst), **judged)


def require(lora: str | Path | None = None, llm: str | Path | None = None) -> None:
    """Checks that a comparison is possible; to be called before long work.

    Args:
      llm, lora: those that are given to the conversion.

    Raises:
      SparkError: a package is missing, or the LLM is not in the official form, the only one that PyTorch loads.
    """
    if llm is not None and holds_part(Path(llm), "llm"):
        raise SparkError(f"{llm}: not in the official form, which a comparison with PyTorch needs; expected its export")
    with needs_extra("parity"):
        import torch  # noqa: F401
        import transformers  # noqa: F401

        if lora is not None:
            import peft  # noqa: F401


def verify(
    source: str | Path, model: Path, llm: str | Path | None = None, lora: str | Path | None = None
) -> ParityReport:
    """Compares a converted model with its source.

    Args:
      source: the official directory or its Hub id.
      model: the model directory made of it; parts that it does not have are left out.
      llm, lora: those that were given to the conversion: another LLM than the source's, an adapter.

    Raises:
      SparkError: a package is missing, or one of the two models cannot be loaded.
    """
    require(lora, llm)
    config = model_directory.read_config(model)
    parts = model_directory.stored_parts(Path(model))
    rows, ids = [], {}
    with jax.default_matmul_precision("highest"):
        if "wav2vec2" in parts:
            folder = local_directory(source, [f"{WAV2VEC2}/*"])[0] / WAV2VEC2
            rows += _wav2vec2_rows(folder, model, config.wav2vec2)
        if "llm" in parts:
            folder = local_directory(source, [f"{LLM}/*"])[0] / LLM if llm is None else local_llm(llm)[0]
            adapter = None if lora is None else local_adapter(lora)[0]
            rows_of_llm, ids["greedy tokens"] = _llm_rows(folder, adapter, model, config)
            rows += rows_of_llm
    return ParityReport(tuple(rows), ids)


def fixed_speech(sample_rate: int, seconds: float = SECONDS) -> Float[np.ndarray, " time"]:
    """Returns a vowel-like sound with changing pitch and loudness, and some noise; the same at every call."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 1.5 * time)) / sample_rate
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))
    return 0.1 * buzz + 0.005 * np.random.default_rng(0).standard_normal(len(time))


def _wav2vec2_rows(folder: Path, model: Path, config: Wav2Vec2Config) -> Iterator[Row]:
    samples = np.array(normalize_input(fixed_speech(16_000)[None]))  # a copy: PyTorch wants it writable
    variables = model_directory.load(model, parts=("wav2vec2",)).variables["wav2vec2"]
    ours = jax.jit(lambda values, x: Wav2Vec2(config).apply(values, x, method="hidden_states"))(variables, samples)
    import torch
    import transformers

    reference = _from_pretrained(transformers.Wav2Vec2Model, folder, wav2vec2.table(config))
    with torch.no_grad():
        theirs = reference(torch.from_numpy(samples), output_hidden_states=True).hidden_states
    # PyTorch norms the output of its last layer; ours is without.
    for index in range(min(len(ours), len(theirs) - 1)):
        yield compare(f"wav2vec2 hidden state {index}", ours[index], theirs[index])


def _llm_rows(
    folder: Path, adapter: Path | None, model: Path, config: SparkConfig
) -> tuple[list[Row], tuple[list[int], list[int]]]:
    loaded = model_directory.load(model, parts=("llm",))
    prompt = _prompt(SparkTokenizer.load(loaded.tokenizer_directory), config)
    states, logits, ids = _our_llm(config.llm, loaded.variables.pop("llm"), prompt)
    dtype = model_directory.info(model).parts["llm"].dtype
    their_states, their_logits, their_ids = _torch_llm(folder, qwen2.table(config.llm), adapter, dtype, prompt)
    rows = [compare(f"llm hidden state {i}", *pair) for i, pair in enumerate(zip(states, their_states, strict=True))]
    return [*rows, compare("llm logits", logits, their_logits)], (ids, their_ids)


def _prompt(tokenizer: SparkTokenizer, config: SparkConfig) -> Int[np.ndarray, " time"]:
    """A cloning prompt with seeded global tokens."""
    count = config.bicodec.speaker_encoder.token_num
    codes = np.random.default_rng(0).integers(len(tokenizer.global_ids), size=count)
    return np.asarray(cloning_prompt(tokenizer, TEXT, codes.tolist()).ids, np.int32)


def _our_llm(config: Qwen2Config, variables: Any, prompt: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """Hidden states as transformers counts them (the last one normed), logits, and greedy tokens."""
    model = Qwen2(config)

    def is_layer(module: nn.Module, _: str) -> bool:
        return isinstance(module, DecoderLayer | Embedding)

    @jax.jit
    def observe(variables, ids):
        (hidden, _), kept = model.apply(variables, ids, capture_intermediates=is_layer)
        kept = kept["intermediates"]
        layers = kept["layers"]["__call__"][0][0][0]  # [layers, batch, time, dim]
        logits = model.apply(variables, hidden, method=Qwen2.logits)
        return [kept["embed"]["__call__"][0], *layers[:-1], hidden], logits

    @jax.jit
    def advance(variables, ids, cache):
        hidden, cache = model.apply(variables, ids, cache=cache)
        return jnp.argmax(model.apply(variables, hidden[:, -1], method=Qwen2.logits), axis=-1), cache

    states, logits = observe(variables, prompt[None])
    cache, ids, new = init_cache(config, 1, len(prompt) + NEW_TOKENS), prompt[None], []
    for _ in range(NEW_TOKENS):
        ids, cache = advance(variables, ids, cache)
        new.append(int(ids[0]))
        ids = ids[:, None]
    return [np.asarray(state) for state in states], np.asarray(logits), new


def _torch_llm(
    folder: Path, table: Table, adapter: Path | None, dtype: str, prompt: np.ndarray
) -> tuple[Iterable[Any], Any, list[int]]:
    """The same from transformers."""
    import torch
    import transformers

    model = _from_pretrained(transformers.AutoModelForCausalLM, folder, table)
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    if dtype != "float32":
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    new: list[int] = []
    with torch.no_grad():
        observed = model(ids, output_hidden_states=True)
        step = model(ids, use_cache=True)
        while True:
            new.append(int(step.logits[0, -1].argmax()))
            if len(new) == NEW_TOKENS:
                return observed.hidden_states, observed.logits, new
            step = model(torch.tensor([[new[-1]]]), past_key_values=step.past_key_values, use_cache=True)


def _from_pretrained(cls: Any, folder: Path, table: Table) -> Any:
    """A transformers model in float32 from a local folder, without progress bars.

    Names of wrappers are left out as the conversion leaves them out (`wrappers.unwrap`); the rest is transformers' own.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what a file has too much is the conversion's to tell
    renamed, _ = inner_names(weights.read(weights.find(folder)), table)
    wrapped = {f"^{re.escape(name)}$": inner for name, inner in renamed.items() if name != inner}
    try:
        return cls.from_pretrained(
            str(folder),
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            **({"key_mapping": wrapped} if wrapped else {}),
        ).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise SparkError(f"{folder}: PyTorch cannot load it ({one_line(error, 300)})") from error
