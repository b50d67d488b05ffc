"""Puts the parts that trainings wrote into one model directory, with a default voice."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from spark_jax.config import SparkConfig
from spark_jax.data import manifest
from spark_jax.data.token_check import CodeSizes, check_ids
from spark_jax.data.tokens import typical_utterance
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.layout import TOKENIZER, StoredPart, combined_config, open_parts
from spark_jax.model_directory.parameters import PARTS, RECOGNIZER, abstract_part
from spark_jax.model_directory.voice import Voice
from spark_jax.text.vocabulary import LEXICON, VOCABULARY, Vocabulary, read_lexicon

DTYPES = ("float16", "bfloat16", "float32")


def assemble(
    destination: str | Path,
    runs: Mapping[str, str | Path],
    config: SparkConfig,
    default_voice: Voice | None = None,
    *,
    voices: Mapping[str, Voice] | None = None,
    dtype: str = "float16",
    model_card: str | Path | None = None,
    lexicon: str | Path | None = None,
) -> int:
    """Writes a model directory from the parts of several runs; returns its size in bytes.

    Args:
      destination: the directory to make; must not exist, or be empty.
      runs: a run or model directory for each of "wav2vec2", "bicodec" and "llm", whose tokenizer it is; "recognizer" is
        optional, for the times of words.
      config: the whole system's sizes; see `sizes`.
      default_voice: that of `synthesize` without a voice; None: the directory has none.
      voices: others, by name.
      dtype: storage type of the weight matrices, one of `DTYPES`.
      model_card: Markdown file to put in; None: one is made.
      lexicon: how words are written in the recognizer's labels, see `text.vocabulary.read_lexicon`; None: the
        recognizer's run has one, or letters are labels.

    Raises:
      SparkError: a run lacks its part or does not fit the sizes, the files of a recognizer are damaged, or the
        destination is taken.
    """
    if dtype not in DTYPES:
        raise SparkError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    wanted = model_directory.abstract_variables(config)
    vocabulary = None
    if RECOGNIZER in runs:
        vocabulary = Path(runs[RECOGNIZER]) / VOCABULARY
        if lexicon is None and (own := Path(runs[RECOGNIZER]) / LEXICON).exists():
            lexicon = own
        if lexicon is not None:
            read_lexicon(lexicon)
        labels = len(Vocabulary.load(vocabulary))
        wanted[RECOGNIZER] = abstract_part(RECOGNIZER, config.wav2vec2, labels)
    variables = {part: model_directory.read_part(runs[part], part, wanted[part]) for part in wanted}
    with tempfile.TemporaryDirectory() as folder:
        named = dict(voices or {}) | ({} if default_voice is None else {"default": default_voice})
        files = {name: Path(folder) / f"{name}.json" for name in named}
        for name, voice in named.items():
            voice.save(files[name], config.sample_rate)
        model_directory.save(
            destination,
            config,
            variables,
            Path(runs["llm"]) / TOKENIZER,
            weight_dtype=jnp.dtype(dtype),
            voices=files,
            model_card=model_card,
            vocabulary=vocabulary,
            lexicon=lexicon,
        )
    return sum(path.stat().st_size for path in Path(destination).rglob("*") if path.is_file())


def sizes(destination: str | Path, runs: Mapping[str, str | Path]) -> SparkConfig:
    """Returns the sizes of the system that the runs make together, each part's from its own run.

    Args:
      destination: for the message.
      runs: as in `assemble`.

    Raises:
      SparkError: a run lacks its part, or the runs differ in sample rate or samples a token.
    """
    return combined_config(Path(destination), {part: _stored(runs[part], part) for part in PARTS})


def most_typical_voice(tokens: str | Path) -> Voice:
    """Returns the voice of the training utterance whose global ids are the commonest ones, position by position.

    Args:
      tokens: token records of `spark-jax prepare encode`.

    Raises:
      SparkError: the file cannot be read or holds no record of the split "train"; its ids are none, or not all of one
        number.
    """
    records = manifest.read_jsonl(tokens, ["index", "global_ids", "semantic_ids"], "train")
    counts = Counter(len(record["global_ids"]) for record in records if isinstance(record["global_ids"], list))
    most = 1 << 16
    sizes = CodeSizes(most, most, max(counts, key=counts.__getitem__) if counts else None)
    for record in records:
        try:
            check_ids(record, sizes)
        except SparkError as error:
            raise SparkError(f"{tokens}: utterance {record['index']!r}: {error}") from error
    typical = records[typical_utterance(records)]
    return Voice(np.asarray(typical["global_ids"]), np.asarray(typical["semantic_ids"]))


def _stored(run: str | Path, part: str) -> StoredPart:
    found = open_parts(run)
    if part not in found:
        raise SparkError(f"{run}: holds no {part}, but {', '.join(found)}")
    return found[part]
