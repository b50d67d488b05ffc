"""Makes the start of a pretraining from a base Qwen: tokenizer and embedding are extended by the Spark tokens.

The result is a model directory of the part "llm" (float32): `init_from` and `model` of a training's configuration name
it, and `tokenizer` its folder of that name.

The rows of all ids that the base's tokenizer does not have are drawn from a normal distribution with mean and
covariance of the rows that it has: new tokens begin inside the cloud of the known ones, so that their first logits
neither drown the old tokens nor vanish (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
Models"). That includes rows which the base keeps in reserve; those were never trained.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from spark_jax.config import Qwen2Config, SparkConfig
from spark_jax.convert import weights
from spark_jax.convert.causes import check_llm, check_names
from spark_jax.convert.configuration import read_llm_config
from spark_jax.convert.engine import Import, raise_faults
from spark_jax.convert.formats.tensors import SourceTensor, is_finite
from spark_jax.convert.hub import local_llm
from spark_jax.convert.tables import qwen2
from spark_jax.convert.wrappers import unwrap
from spark_jax.errors import SparkError
from spark_jax.model_directory.directory import finish, part_path, write_config
from spark_jax.model_directory.parameters import abstract_part
from spark_jax.model_directory.parts import write_arrays
from spark_jax.model_directory.provenance import Provenance, Source
from spark_jax.shared.files import new_directory
from spark_jax.text.tokenizer import extend_tokenizer

_ROWS = 4096  # of an embedding, taken together
_JITTER = 1e-6  # of the mean variance: keeps the factorization of a covariance of few rows possible


@dataclasses.dataclass(frozen=True)
class InitResult:
    """What `init_llm` made: the decoder's configuration, and the sizes of the two tokenizers."""

    config: Qwen2Config
    base_tokens: int
    tokens: int


def init_llm(
    base: str | Path,
    destination: str | Path,
    vocab_size: int,
    seed: int = 0,
    semantic_codes: int = 8192,
    global_codes: int = 4096,
) -> InitResult:
    """Writes the start of a pretraining as a model directory.

    Args:
      base: directory (or Hub id) of a Qwen2, Qwen2.5 or Qwen3, with its tokenizer.json.
      destination: the directory to make; must not exist, or be empty. It appears when it is complete.
      vocab_size: rows of the new embedding, and columns of an untied head: at least the extended tokenizer's size;
        166,000 in the release.
      seed: of the new rows.
      semantic_codes, global_codes: sizes of the codec's codebooks.

    Raises:
      SparkError: a file is missing, damaged or not supported; the tokenizer has Spark tokens already, or more tokens
        than the embedding has rows or than `vocab_size`; the destination is taken.
    """
    folder, hub_id = local_llm(base)
    check_llm(folder, weights.FILES)
    config = read_llm_config(folder / "config.json")
    tokenizer, known = extend_tokenizer(folder, semantic_codes, global_codes)
    if known > config.vocab_size:
        raise SparkError(f"{folder}: the tokenizer has {known} tokens, the embedding {config.vocab_size} rows")
    if vocab_size < tokenizer.vocab_size:
        raise SparkError(f"vocab_size is {vocab_size}, expected at least {tokenizer.vocab_size}, the tokenizer's size")
    extended = dataclasses.replace(config, vocab_size=vocab_size)
    file = weights.find(folder)
    tensors = weights.read(file)
    check_names(tensors, file)
    tensors = unwrap(tensors, qwen2.table(config), file)
    if config.tie_word_embeddings and qwen2.HEAD in tensors:
        # A head that is the embedding gets the same rows; that it is, the engine sees.
        grown = ((qwen2.EMBEDDING, 0), (qwen2.HEAD, 0))
    else:
        grown = ((qwen2.EMBEDDING, 0), (qwen2.HEAD, 1))
    for name, number in grown:
        tensor = tensors.get(name)
        if tensor is not None and not tensor.fault and tensor.shape == (config.vocab_size, config.hidden_size):
            read = functools.partial(_grown, tensor, known, vocab_size, (seed, number))
            tensors[name] = dataclasses.replace(tensor, shape=(vocab_size, config.hidden_size), read=read)
    with new_directory(destination) as out:
        job = Import(qwen2.table(extended), tensors, abstract_part("llm", extended))
        raise_faults({str(file): job.faults})
        tokenizer.save(out / "tokenizer")
        write_arrays(part_path(out, "llm"), job.leaves())
        raise_faults({str(file): job.faults})
        write_config(out, SparkConfig(llm=extended), ["llm"])
        finish(out, Provenance((Source.of(folder, weights.files(file), name=hub_id, role="llm"),)))
    return InitResult(extended, known, tokenizer.vocab_size)


def _grown(tensor: SourceTensor, known: int, rows: int, seed: tuple[int, int]) -> np.ndarray:
    """The first `known` rows of an embedding as they are, and drawn ones up to `rows`; float32."""
    values = np.empty((rows, tensor.shape[1]), np.float32)
    values[:known] = tensor.read()[:known]
    if not is_finite(values[:known]):
        values[known:] = np.nan
        return values  # the engine names the tensor
    mean = values[:known].mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, known, _ROWS):
        centered = values[start : min(start + _ROWS, known)] - mean
        covariance += centered.T @ centered
    covariance /= max(known - 1, 1)
    covariance[np.diag_indices(len(mean))] += _JITTER * np.trace(covariance) / len(mean)
    factor = np.linalg.cholesky(covariance)  # unique, unlike eigenvectors: a seed means the same everywhere
    rng = np.random.default_rng(seed)
    for start in range(known, rows, _ROWS):
        place = values[start : start + _ROWS]
        place[:] = mean + rng.standard_normal(place.shape) @ factor.T
    return values
