"""The configuration of the codec's training; the defaults are the paper's recipe."""

import dataclasses
from typing import Literal

from spark_jax.config import DiscriminatorConfig, SparkConfig
from spark_jax.data.config import CodecDataConfig, Sources
from spark_jax.dataclass_reader import PlainNumbers
from spark_jax.errors import SparkError
from spark_jax.training.config import LoopConfig, MeshConfig
from spark_jax.training.optimizer import OptimizerConfig

PARTS = ("encoder", "quantizer", "speaker_encoder", "prenet", "postnet", "wave_generator")
PITCH_HEAD = "pitch_head"  # a part where the model has a harmonic source

# AdamW (0.8, 0.9), clip 1.0, 1,000 steps to 1e-4, linear to 1e-5 over 500,000 (authors' configuration).
_OPTIMIZER = OptimizerConfig(
    learning_rate=1e-4, schedule="linear", warmup_steps=1000, decay_steps=500_000, floor=1e-5, betas=(0.8, 0.9)
)


@dataclasses.dataclass(frozen=True)
class LossWeights(PlainNumbers):
    """Weights of the generator's losses; those of codebook and commitment are the quantizer's."""

    mel: float = 15.0
    adversarial: float = 1.0
    feature_matching: float = 1.0
    vq: float = 1.0
    speaker: float = 1.0
    features: float = 1.0
    # Mean squared error of the quantized latents themselves to the features, frame by frame (latents and features of
    # one size). The paper has none: its codes may spread what they carry over their neighbors, which the decoder's
    # context undoes, and which a small language model cannot predict. With this loss a code says what its frame is.
    codes: float = 0.0
    # Of a model with a harmonic source, in phases that make a waveform: what it predicts of the pitch within the
    # utterance, of voicing, and of the utterance's mean pitch (bicodec/pitch.py).
    f0: float = 0.3
    voicing: float = 0.3
    mean_f0: float = 0.3
    # Of the same models: unvoiced sounds that repeat from token to token (bicodec/losses.py). The paper has none.
    repetition: float = 0.0


@dataclasses.dataclass(frozen=True)
class DeadCodeResetConfig(PlainNumbers):
    """Dead codes are put onto latents of the batch; off by default, the paper has none.

    A run of few steps needs it: codes that no latent is near to at the start never get a gradient.
    """

    every: int = 0  # steps; 0: never
    until: int = 0  # step from which codes are left to settle
    below: float = 0.05  # usage that counts as dead, as a fraction of even usage


@dataclasses.dataclass(frozen=True)
class BiCodecTrainingConfig(PlainNumbers):
    """Settings of a codec training.

    Phases: "full" is the paper's. "features" leaves the wave generator out: quantizer, feature reconstruction and
    speaker loss settle the semantic codes at little cost. "wave" trains prenet and wave generator from the ids in
    `tokens`, those that whole utterances have at inference; nothing else of the codec runs, but with `reference_clips`
    the speaker branch.

    A model with a harmonic source is given the recordings' own pitch where it makes a waveform: its corpus is a folder
    with pitch tracks (data/pitch_tracks.py).

    Every step is one batch: batch norms and code usage are the whole batch's, so that micro-batches would be another
    training. What does not fit takes `remat`, more devices or fewer `data.batch_segments`.

    Parts in `freeze` neither get gradients nor change their statistics. Discriminators take part from step
    `adversarial_start` on; None: never, and they do not exist.
    """

    # Folder with metadata.jsonl or of `spark-jax prepare`; several with weights: [{path: …, weight: 0.5}, …]
    corpus: Sources = "corpus"
    model: str | None = None  # YAML of a SparkConfig, or a model directory; None: the release's sizes
    # A model directory or run with the frozen feature extractor; None: random, for tests and timing.
    wav2vec2: str | None = None
    init_from: str | None = None  # a model directory or run whose codec this one starts from
    phase: Literal["full", "features", "wave"] = "full"
    # From `spark-jax prepare encode`, for phase "wave"; None where the corpus is of records that hold them.
    tokens: str | None = None
    # In phase "wave" voices are heard in clips of the utterances by the speaker branch, which is trained with all else,
    # in place of the global ids in `tokens`.
    reference_clips: bool = False
    freeze: tuple[str, ...] = ()
    adversarial_start: int | None = 0
    d_vector_train_start: int = 1000  # until this step the decoder hears the x-vector
    # Of the computation of wav2vec2, codec and discriminators; parameters, norms, quantizers, spectra and losses stay
    # float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False  # blocks of the codec and discriminators are computed again for the gradient: less memory
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    losses: LossWeights = LossWeights()
    dead_code_reset: DeadCodeResetConfig = DeadCodeResetConfig()
    data: CodecDataConfig = CodecDataConfig()
    generator_optimizer: OptimizerConfig = _OPTIMIZER
    discriminator_optimizer: OptimizerConfig = _OPTIMIZER
    loop: LoopConfig = LoopConfig(steps=800_000, evaluate_every=5000, checkpoint_every=5000)
    mesh: MeshConfig = MeshConfig()

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Names the parts of the codec that this run does not train; the pitch head among them only if there is one.

        Raises:
          SparkError: a part that does not exist, or nothing is left to train; codes shall be reset that are frozen.
        """
        parts = (*PARTS, PITCH_HEAD)
        unknown = sorted(set(self.freeze) - set(parts))
        if unknown:
            raise SparkError(f"freeze: unknown part {unknown[0]!r}, expected some of {', '.join(parts)}")
        if self.reference_clips and self.phase != "wave":
            raise SparkError(f'reference_clips: phase is {self.phase!r}, expected "wave"; the others have them anyway')
        left_out = {"features": ("wave_generator", PITCH_HEAD), "wave": ("encoder", "quantizer", "postnet")}
        without = left_out.get(self.phase, ()) + ("speaker_encoder",) * (
            self.phase == "wave" and not self.reference_clips
        )
        frozen = tuple(part for part in parts if part in self.freeze + without)
        if set(PARTS) <= set(frozen):
            raise SparkError("freeze: no part is left to train")
        if self.dead_code_reset.every and "quantizer" in frozen:
            every = self.dead_code_reset.every
            raise SparkError(f"dead_code_reset.every is {every}, expected 0: the quantizer is frozen")
        return frozen

    def needs_pitch(self, system: SparkConfig) -> bool:
        """Returns whether batches carry the pitch of the recordings: a model with a source makes waveforms."""
        return self.phase != "features" and system.bicodec.decoder.source is not None

    @property
    def adversarial(self) -> bool:
        """Whether discriminators take part at some step."""
        return self.phase != "features" and self.adversarial_start is not None
