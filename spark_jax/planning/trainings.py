"""What the planner knows of each training: its batch, what makes it smaller, and how long a corpus lasts."""

import dataclasses
from collections.abc import Callable
from typing import Any

from spark_jax.config import SparkConfig
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.llm.config import LLMTrainingConfig

# Of speech in the language model's tokens, beside its semantic and global ones: those of the text, about 4 a second,
# and some 10 of the frame of an utterance.
TEXT_TOKENS_A_SECOND, FRAME_TOKENS = 4, 10
# What takes less memory for more work, the least costly first; XLA's own message says what is missing.
REMAT = ("none", "dots", "attention", "full")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a training reads once, and how fast.

    Attributes:
      hours: of audio; None: not known.
      tokens: of the language model; None: not known.
      utterance_seconds: mean length, for the tokens of so many hours.
      mfu: assumed model FLOPs utilization.
    """

    hours: float | None = None
    tokens: float | None = None
    utterance_seconds: float = 8.0
    mfu: float = 0.4


@dataclasses.dataclass(frozen=True)
class Facts:
    """What differs from training to training.

    Attributes:
      batch: (configuration) → a step's batch in words.
      smaller: (configuration) → settings that take less memory, those that cost least first; beside those of the mesh.
      corpus: (configuration, sizes, corpus) → steps to read it once and what it is; None: the corpus is not known.
    """

    batch: Callable[[Any], str]
    smaller: Callable[[Any], list[list[str]]]
    corpus: Callable[[Any, SparkConfig, Corpus], tuple[float, str] | None]


def of(config: Any) -> Facts:
    """Returns the facts of the training that the configuration is for."""
    return _FACTS[type(config)]


def neighbors(config: Any) -> list[list[str]]:
    """Returns settings one change away that take less memory, those that cost least first."""
    mesh = [f"mesh.fsdp={2 * config.mesh.fsdp}"]
    if config.mesh.data > 1:
        mesh.insert(0, f"mesh.data={config.mesh.data // 2}")
    return [mesh, *of(config).smaller(config)]


def corpus_steps(config: Any, system: SparkConfig, corpus: Corpus) -> tuple[float, str]:
    """Returns the steps to read the corpus once (without one, those of the run), and what that is in words."""
    return of(config).corpus(config, system, corpus) or (config.loop.steps, f"{config.loop.steps:,} steps")


def _llm_batch(config: LLMTrainingConfig) -> str:
    return f"{config.accumulate} × {config.data.batch_rows} rows of {config.data.row_length:,} tokens a step"


def _smaller_llm(config: LLMTrainingConfig) -> list[list[str]]:
    found = [[f"remat={policy}"] for policy in REMAT[REMAT.index(config.remat) + 1 :]]
    found.append([f"accumulate={2 * config.accumulate}", f"data.batch_rows={config.data.batch_rows // 2}"])
    if config.loss_chunk >= 512:
        found.append([f"loss_chunk={config.loss_chunk // 2}"])
    return found


def _llm_corpus(config: LLMTrainingConfig, system: SparkConfig, corpus: Corpus) -> tuple[float, str] | None:
    tokens = corpus.tokens
    if corpus.hours is not None:
        weight = config.data.tts_weight + config.data.controllable_weight
        of_utterance = system.bicodec.speaker_encoder.token_num + FRAME_TOKENS
        rate = system.token_rate + TEXT_TOKENS_A_SECOND + of_utterance / corpus.utterance_seconds
        tokens = corpus.hours * 3600 * weight * rate
    if tokens is None:
        return None
    steps = tokens / (config.accumulate * config.data.batch_rows * config.data.row_length)
    return steps, f"{tokens / 1e9:,.2f} billion tokens are {steps:,.0f} steps"


def _codec_batch(config: BiCodecTrainingConfig) -> str:
    return f"{config.data.batch_segments} segments of {config.data.segment_seconds} s a step"


def _smaller_codec(config: BiCodecTrainingConfig) -> list[list[str]]:
    # Its batch cannot be accumulated: discriminators, batch statistics and code usage are of the whole batch.
    remat = [] if config.remat else [["remat=true"]]
    return [*remat, [f"data.batch_segments={config.data.batch_segments // 2}"]]


def _codec_corpus(config: BiCodecTrainingConfig, _: SparkConfig, corpus: Corpus) -> tuple[float, str] | None:
    return _hours(corpus, config.data.batch_segments * config.data.segment_seconds)


def _ctc_batch(config: CTCTrainingConfig) -> str:
    longest = config.data.bucket_seconds[-1]
    return f"{config.data.batch_seconds:g} s of utterances of up to {longest:g} s a step"


def _smaller_ctc(config: CTCTrainingConfig) -> list[list[str]]:
    return [[f"data.batch_seconds={config.data.batch_seconds / 2:g}"]]


def _ctc_corpus(config: CTCTrainingConfig, _: SparkConfig, corpus: Corpus) -> tuple[float, str] | None:
    return _hours(corpus, config.data.batch_seconds)


def _hours(corpus: Corpus, step_seconds: float) -> tuple[float, str] | None:
    if corpus.hours is None:
        return None
    steps = corpus.hours * 3600 / step_seconds
    return steps, f"{corpus.hours:,.0f} h of audio are {steps:,.0f} steps"


_FACTS = {
    LLMTrainingConfig: Facts(_llm_batch, _smaller_llm, _llm_corpus),
    BiCodecTrainingConfig: Facts(_codec_batch, _smaller_codec, _codec_corpus),
    CTCTrainingConfig: Facts(_ctc_batch, _smaller_ctc, _ctc_corpus),
}
