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
    # Of squared error and cross-entropy of pitch and voicing, which a linear head hears in the tapped features: without
    # it they carry little pitch. The corpus has pitch tracks then (data/pitch_tracks.py); 0: no head.
    pitch_weight: float = 0.0
    fourier_front_end: bool = False  # the first convolution starts as a Fourier bank: wav2vec2/fourier.py
    data: AudioDataConfig = AudioDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()
