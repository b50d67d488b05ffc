"""The train steps of tools/benchmark_training.py in PyTorch, from the weights of a fresh state of ours.

The language model is transformers' own class with scaled_dot_product_attention under a mask of segments and
cross-entropy of the target positions only; the codec's phase "wave" is the modules of a checkout of the official
repository and DAC's mel loss. Both: AdamW (fused), clipping by global norm, the same schedule.
"""

import inspect
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from spark_jax.bicodec.losses import MEL_BANDS, MEL_FLOOR, MEL_WINDOWS, filterbank
from spark_jax.config import SparkConfig, to_mapping
from spark_jax.convert import release
from spark_jax.convert.configuration import write_bicodec_config
from spark_jax.convert.engine import Export
from spark_jax.data import tokens
from spark_jax.errors import SparkError
from spark_jax.shared.extra import needs_extra
from spark_jax.shared.pytree import flatten
from spark_jax.training.codec.config import BiCodecTrainingConfig
from spark_jax.training.codec.state import codec_variables
from spark_jax.training.llm.config import LLMTrainingConfig
from spark_jax.training.optimizer import OptimizerConfig, make_schedule
from spark_jax.training.state import TrainState

with needs_extra("parity"):
    import torch
    import transformers

Step = Callable[[Mapping[str, np.ndarray]], float]


def llm_step(run: LLMTrainingConfig, system: SparkConfig, state: TrainState) -> Step:
    """Returns a function for one update of the language model, which returns the loss.

    Raises:
      SparkError: transformers' class does not take our tensors.
    """
    model = language_model(system, {"params": state.params})
    update = _updater(model.parameters(), run.optimizer, run.loop.steps)

    def step(batch: Mapping[str, np.ndarray]) -> float:
        part = {name: torch.from_numpy(value) for name, value in batch.items()}
        segments = part["segment_ids"]
        mask = (segments[:, :, None] == segments[:, None, :]).tril(0)[:, None]
        hidden = model.model(
            input_ids=part["input_ids"].long(),
            position_ids=part["positions"].long(),
            attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        asked = part["classes"] != tokens.NONE
        logits = model.lm_head(hidden[asked])
        return update(torch.nn.functional.cross_entropy(logits, part["targets"][asked].long()))

    return step


def language_model(system: SparkConfig, variables: Any) -> "torch.nn.Module":
    """Returns transformers' own class with our variables, in float32.

    Raises:
      SparkError: it does not take our tensors.
    """
    llm = system.llm
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size"
    names += " max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta head_dim"
    cls = transformers.Qwen3Config if llm.qk_norm else transformers.Qwen2Config
    sizes = {name: value for name, value in to_mapping(llm).items() if name in names.split()}
    model = transformers.AutoModelForCausalLM.from_config(cls(**sizes), dtype=torch.float32, attn_implementation="sdpa")
    tensors = official_tensors("llm", system, variables)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SparkError(f"transformers' model: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def codec_step(run: BiCodecTrainingConfig, system: SparkConfig, state: TrainState, reference: Path) -> Step:
    """Returns a function for one update of prenet and wave generator from given ids, without discriminators.

    It returns the weighted loss.

    Args:
      reference: checkout of the official repository (has sparktts/).

    Raises:
      SparkError: another phase; no checkout, a package that it needs is missing, or it does not take our tensors.
    """
    if run.phase != "wave":
        raise SparkError(f'phase is {run.phase!r}, expected "wave"')
    modules = codec_modules(reference, system)
    tensors = official_tensors("bicodec", system, codec_variables(state))
    # Of the frozen parts only what turns ids into vectors: the official code knows one size of ECAPA.
    needed = ("quantizer.", "speaker_encoder.quantizer.", "speaker_encoder.project.", "prenet.", "decoder.")
    missing, unexpected = modules.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if name.startswith(needed)}, strict=False
    )
    missing = [name for name in missing if name.startswith(("prenet.", "decoder.", "speaker_encoder.project."))]
    if missing or unexpected:
        raise SparkError(f"{reference}: missing {missing}, unexpected {unexpected}")
    trained = {"prenet": "prenet", "wave_generator": "decoder"}
    parts = [modules[theirs] for ours, theirs in trained.items() if ours not in run.frozen_parts]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    modules.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    update = _updater(parameters, run.generator_optimizer, run.loop.steps)

    def step(batch: Mapping[str, np.ndarray]) -> float:
        part = {name: torch.from_numpy(value) for name, value in batch.items()}
        with torch.no_grad():
            quantized = modules["quantizer"].detokenize(part["semantic_ids"].long())
            condition = modules["speaker_encoder"].detokenize(part["global_ids"].long()[:, None])
        x = modules["prenet"](quantized, condition) + condition[:, :, None]
        recons = modules["decoder"](x)[:, 0]
        return update(run.losses.mel * multi_resolution_mel_loss(recons, part["wave"], system.sample_rate))

    return step


def multi_resolution_mel_loss(wave: "torch.Tensor", target: "torch.Tensor", sample_rate: int) -> "torch.Tensor":
    """Computes `bicodec.losses.multi_resolution_mel_loss`; both [batch, samples]."""
    total = torch.zeros(())
    for window, bands in zip(MEL_WINDOWS, MEL_BANDS, strict=True):
        filters = torch.from_numpy(filterbank(window, bands, sample_rate))
        ours, theirs = (_log_mel(x, window, filters) for x in (wave, target))
        total = total + torch.nn.functional.l1_loss(ours, theirs)
    return total


def _log_mel(wave: "torch.Tensor", window: int, filters: "torch.Tensor") -> "torch.Tensor":
    spectrum = torch.stft(wave, window, window // 4, window=torch.hann_window(window), return_complex=True)
    return (spectrum.abs().transpose(1, 2) @ filters).clamp(min=MEL_FLOOR).log10()


def codec_modules(reference: Path, system: SparkConfig) -> "torch.nn.ModuleDict":
    """Returns the codec's modules of a checkout of the official repository, but the postnet, with weights of their own.

    Raises:
      SparkError: no checkout, or a package that it needs is missing.
    """
    if not (reference / "sparktts").is_dir():
        raise SparkError(f"{reference}: has no sparktts; expected a checkout of the official repository")
    sys.path.insert(0, str(reference))
    with needs_extra("parity"):
        from sparktts.modules.encoder_decoder.feat_decoder import Decoder
        from sparktts.modules.encoder_decoder.feat_encoder import Encoder
        from sparktts.modules.encoder_decoder.wave_generator import WaveGenerator
        from sparktts.modules.speaker.speaker_encoder import SpeakerEncoder
        from sparktts.modules.vq.factorized_vector_quantize import FactorizedVectorQuantize
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        write_bicodec_config(path, system.bicodec)
        sections = yaml.safe_load(path.read_text())["audio_tokenizer"]

    def make(cls: Any, name: str) -> "torch.nn.Module":
        known = inspect.signature(cls).parameters
        return cls(**{key: value for key, value in sections[name].items() if key in known})

    classes = {
        "encoder": Encoder,
        "quantizer": FactorizedVectorQuantize,
        "speaker_encoder": SpeakerEncoder,
        "prenet": Decoder,
        "decoder": WaveGenerator,
    }
    return torch.nn.ModuleDict({name: make(cls, name) for name, cls in classes.items()})


def official_tensors(part: str, system: SparkConfig, variables: Any) -> dict[str, "torch.Tensor"]:
    """Returns our variables as the tensors of the official file."""
    table = release.table(part, system)
    job = Export(table, jax.eval_shape(lambda: variables), np.dtype(np.float32))
    leaves = flatten(jax.device_get(variables)).items()
    return {name: torch.tensor(tensor) for name, tensor in job.tensors(leaves)}


def _updater(
    parameters: Iterable["torch.nn.Parameter"], config: OptimizerConfig, steps: int
) -> Callable[["torch.Tensor"], float]:
    """loss → its value, after one update of AdamW as `training.optimizer` makes it."""
    parameters = list(parameters)
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=1.0,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    schedule = make_schedule(config, steps)
    rates = [float(schedule(i)) for i in range(64)]  # of longer runs, only the time is looked at
    updates = 0

    def update(loss: "torch.Tensor") -> float:
        nonlocal updates
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rates[min(updates, len(rates) - 1)]
        optimizer.step()
        updates += 1
        return float(loss.detach())

    return update
