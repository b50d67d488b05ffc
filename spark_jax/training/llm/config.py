"""The configuration of the speech-token language model's training."""

import dataclasses
from typing import Literal

from spark_jax.data.config import Sources, TokenDataConfig
from spark_jax.dataclass_reader import PlainNumbers
from spark_jax.nn.attention import AttentionBackend
from spark_jax.qwen2.model import Remat
from spark_jax.training.config import LoopConfig, MeshConfig
from spark_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class LLMTrainingConfig(PlainNumbers):
    """Settings of a language model training."""

    # From `spark-jax prepare encode` or `prepare token-records`; several with weights: [{path: …, weight: 0.5}, …]
    tokens: Sources = "tokens.jsonl"
    tokenizer: str = "bytes"  # a folder, a ranks file (qwen.tiktoken), or "bytes": see build_tokenizer
    model: str | None = None  # YAML of a SparkConfig, or a model directory; None: the release's sizes
    init_from: str | None = None  # a model directory or run whose llm this one starts from
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    accumulate: int = 1  # micro-batches per update
    loss_chunk: int = 1024  # tokens of a device whose logits exist at a time
    attention: AttentionBackend = "auto"  # by the devices; "blockwise" is for CPUs: nn/attention.py
    remat: Remat = "none"  # what is computed again for the gradient: qwen2/model.py
    unroll_layers: int = 1  # layers written out in one body of the loop over them: qwen2/model.py
    data: TokenDataConfig = TokenDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig(
        schedule="inverse_sqrt",
        warmup_steps=5000,
        floor=1e-5,
        decay_factor=0.5,
        decay_factor_step=400_000,
        betas=(0.9, 0.96),
        weight_decay=1e-6,
    )
    loop: LoopConfig = LoopConfig()
    mesh: MeshConfig = MeshConfig()
