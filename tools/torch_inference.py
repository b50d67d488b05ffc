"""PyTorch's side of tools/benchmark_inference.py, in float32 on CPUs, with our weights.

The language model is transformers' own class with scaled_dot_product_attention and its default cache; its choice is the
largest of the scores that the grammar allows, which costs less than the sampling that a speech needs. wav2vec2 is
transformers' own, and BiCodec the modules of a checkout of the official repository, without weight norm as there.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch_training import codec_modules, language_model, official_tensors

from spark_jax.audio.mel import mel_filterbank
from spark_jax.config import SparkConfig
from spark_jax.convert.configuration import write_wav2vec2_config
from spark_jax.errors import SparkError
from spark_jax.shared.extra import needs_extra

with needs_extra("parity"):
    import safetensors.torch
    import torch
    import transformers


class LanguageModel:
    """Answers to prompts of one length, greedily."""

    def __init__(self, system: SparkConfig, variables: Any, allowed: Int[np.ndarray, " ids"]):
        """Args:
          system: sizes.
          variables: ours of the language model.
          allowed: the tokens that may be chosen.

        Raises:
          SparkError: transformers' class does not take our tensors.
        """
        self._model = language_model(system, variables).eval()
        self._allowed = torch.from_numpy(np.asarray(allowed, np.int64))

    @torch.no_grad()
    def read(self, prompts: Int[np.ndarray, "rows time"]) -> "Answers":
        """Reads prompts, and chooses the first token of each."""
        ids = torch.from_numpy(prompts.astype(np.int64))
        found = self._model(ids, use_cache=True, logits_to_keep=1)
        return Answers(self._model, self._allowed, found)


class Answers:
    """Prompts that were read, and what was said to them so far."""

    def __init__(self, model: Any, allowed: Any, found: Any):
        """Args: see `LanguageModel`; `found`: what the model returned of the prompts."""
        self._model, self._allowed = model, allowed
        self._chosen = [self._choose(found)]
        self._cache = found.past_key_values

    @torch.no_grad()
    def go_on(self, steps: int) -> None:
        """Chooses so many more tokens of each."""
        for _ in range(steps):
            found = self._model(self._chosen[-1][:, None], past_key_values=self._cache, use_cache=True)
            self._chosen.append(self._choose(found))
            self._cache = found.past_key_values

    @property
    def tokens(self) -> Int[np.ndarray, "rows tokens"]:
        """Returns the tokens so far."""
        return torch.stack(self._chosen, dim=1).numpy()

    def _choose(self, found: Any) -> Any:
        return self._allowed[found.logits[:, -1, self._allowed].argmax(dim=-1)]


class Codec:
    """wav2vec2 and BiCodec."""

    def __init__(self, reference: Path, system: SparkConfig, variables: Mapping[str, Any]):
        """Args:
          reference: checkout of the official repository (has sparktts/).
          system: sizes.
          variables: ours of "bicodec" and "wav2vec2".

        Raises:
          SparkError: no checkout, a package that it needs is missing, or it does not take our tensors.
        """
        self._system = system
        self._modules = codec_modules(reference, system).eval()
        tensors = official_tensors("bicodec", system, variables["bicodec"])
        missing, unexpected = self._modules.load_state_dict(tensors, strict=False)
        unexpected = [name for name in unexpected if not name.startswith("postnet.")]
        if unexpected or [name for name in missing if not name.endswith("num_batches_tracked")]:
            raise SparkError(f"{reference}: missing {missing[:5]}, unexpected {unexpected[:5]}")
        for module in self._modules.modules():
            if hasattr(module, "weight_g"):
                torch.nn.utils.remove_weight_norm(module)
        with tempfile.TemporaryDirectory() as folder:
            write_wav2vec2_config(Path(folder), system.wav2vec2, system.sample_rate)
            path = Path(folder) / "model.safetensors"
            own = {
                name: tensor.contiguous()
                for name, tensor in official_tensors("wav2vec2", system, variables["wav2vec2"]).items()
            }
            safetensors.torch.save_file(own, path, metadata={"format": "pt"})
            transformers.utils.logging.disable_progress_bar()
            transformers.utils.logging.set_verbosity_error()
            self._wav2vec2 = transformers.Wav2Vec2Model.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            ).eval()
        mel = system.bicodec.mel_params
        highest = mel.sample_rate / 2 if mel.mel_fmax is None else mel.mel_fmax
        self._filters = torch.from_numpy(
            mel_filterbank(mel.sample_rate, mel.n_fft, mel.num_mels, mel.mel_fmin, highest)
        )

    @torch.no_grad()
    def encode(
        self, samples: Float[np.ndarray, "batch time"], clips: Float[np.ndarray, "batch clip"]
    ) -> tuple[Int[np.ndarray, "batch global"], Int[np.ndarray, "batch tokens"]]:
        """Returns global and semantic ids of volume-normalized speech and of its reference clips."""
        waves = torch.from_numpy(samples)
        waves = (waves - waves.mean(dim=1, keepdim=True)) / (waves.var(dim=1, keepdim=True, correction=0) + 1e-7).sqrt()
        states = self._wav2vec2(waves, output_hidden_states=True).hidden_states
        taps = self._system.wav2vec2.feature_layers
        features = sum(states[tap] for tap in taps) / len(taps)
        semantic_ids = self._modules["quantizer"].tokenize(self._modules["encoder"](features.transpose(1, 2)))
        mel = self._system.bicodec.mel_params
        window = torch.hann_window(mel.win_length)
        spectrum = torch.stft(
            torch.from_numpy(clips), mel.n_fft, mel.hop_length, mel.win_length, window, return_complex=True
        )
        bands = spectrum.abs().transpose(1, 2) @ self._filters
        global_ids = self._modules["speaker_encoder"].tokenize(bands)
        return global_ids.flatten(1).numpy(), semantic_ids.flatten(1).numpy()

    @torch.no_grad()
    def vocode(
        self, semantic_ids: Int[np.ndarray, "batch tokens"], global_ids: Int[np.ndarray, "batch global"]
    ) -> Float[np.ndarray, "batch samples"]:
        """Returns the waveforms."""
        quantized = self._modules["quantizer"].detokenize(torch.from_numpy(semantic_ids.astype(np.int64)))
        speakers = torch.from_numpy(global_ids.astype(np.int64))[:, None]
        condition = self._modules["speaker_encoder"].detokenize(speakers)
        x = self._modules["prenet"](quantized, condition) + condition[:, :, None]
        return self._modules["decoder"](x)[:, 0].numpy()


def use_threads(count: int) -> None:
    """Lets PyTorch compute in so many threads."""
    torch.set_num_threads(count)
