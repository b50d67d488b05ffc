"""The configuration of the recognizer's training."""

import dataclasses
from typing import Literal

from spark_jax.data.config import AudioDataConfig
from spark_jax.dataclass_reader import PlainNumbers
from spark_jax.training.config import LoopConfig, MeshConfig
from spark_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class CTCTrainingConfig(PlainNumbers):
    """Settings of a training of a wav2vec2 encoder with a CTC head on the transcripts of a corpus."""

    corpus: str = "corpus"  # folder with metadata.jsonl
    model: str | None = None  # YAML of a SparkConfig, or a model directory; None: the release's sizes
    target: Literal["phonemes", "text"] = "phonemes"
    aligned: bool = False  # the corpus says when each phoneme is spoken: tools/tiny_en/align_corpus.py
    fourier_front_end: bool = False  # the first convolution starts as a Fourier bank: wav2vec2/fourier.py
    data: AudioDataConfig = AudioDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()
