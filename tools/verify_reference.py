"""Compares a converted model's codec with the official PyTorch code, from a checkout of its repository.

    pip install -e ".[parity]" torchaudio einops einx omegaconf
    python tools/verify_reference.py --reference Spark-TTS --source Spark-TTS-0.5B --model model

Both get one fixed recording: first each stage of BiCodec the reference's own input, then the whole way from the file
to tokens and back. wav2vec2 and the LLM are compared by `spark-jax convert --verify`. Exit code 1: not equal.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import soundfile
import typer

from spark_jax.audio.load import load_audio
from spark_jax.audio.mel import mel_spectrogram
from spark_jax.audio.normalize import reference_clip, volume_normalize
from spark_jax.bicodec.model import BiCodec
from spark_jax.convert.verify import ParityReport, Row, compare, fixed_speech
from spark_jax.errors import SparkError, ends_with_a_line, one_line
from spark_jax.inference.codec import Codec
from spark_jax.model_directory import directory as model_directory
from spark_jax.shared.extra import needs_extra

# Name, our module, the reference's, and whether its output is channels-first.
STAGES = (
    ("encoder", "encoder", "encoder", True),
    ("quantized", "quantizer/out_project", "quantizer.out_project", True),
    ("perceiver", "speaker_encoder/perceiver", "speaker_encoder.perceiver_sampler", False),
    ("prenet", "prenet", "prenet", True),
    ("postnet", "postnet", "postnet", True),
)
WAVEFORM = {"tolerance": 1e-4, "absolute": True}  # amplitudes of -1 to 1


@ends_with_a_line()
def main(
    reference: Annotated[Path, typer.Option(help="Checkout of the official repository (has sparktts/).")],
    source: Annotated[Path, typer.Option(help="Official directory of the weights.")],
    model: Annotated[Path, typer.Option(help="Model directory converted from it.")],
) -> None:
    """Compares BiCodec with the official code."""
    report = verify_codec(reference, source, model)
    print(report)
    raise SystemExit(0 if report.passed else 1)


def verify_codec(reference: Path, source: Path, model: Path) -> ParityReport:
    """Compares BiCodec's stages on the same input, then the whole way of a recording.

    Raises:
      SparkError: the official code or one of the two models cannot be loaded.
    """
    tokenizer = load_reference(reference, source)
    loaded = model_directory.load(model, parts=("bicodec", "wav2vec2"))
    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision("highest"):
        recording = Path(folder) / "speech.wav"
        soundfile.write(recording, fixed_speech(24_000, 3.0), 24_000, subtype="PCM_24")
        rows, ids = stages(tokenizer, loaded, recording)
        # The library's own way, from the file on: ids that differ here alone are the front end's fault.
        codec = Codec(loaded.config, loaded.variables)
        [our_ids] = codec.encode_files([recording])
        global_ids, semantic_ids = tokenizer.tokenize(recording)
        [ours] = codec.decode([our_ids])
        theirs = tokenizer.detokenize(global_ids.squeeze(0), semantic_ids)
        rows.append(compare("recording to waveform", ours, theirs, **WAVEFORM))
    ids["global ids of the recording"] = our_ids[0].tolist(), global_ids.flatten().tolist()
    ids["semantic ids of the recording"] = our_ids[1].tolist(), semantic_ids.flatten().tolist()
    return ParityReport(tuple(rows), ids)


def stages(
    tokenizer: Any, loaded: model_directory.LoadedModel, recording: Path
) -> tuple[list[Row], dict[str, tuple[list[int], list[int]]]]:
    """Compares BiCodec's modules one by one, on the reference's features of the recording: rows and ids of a report."""
    import torch

    config, codec = loaded.config, BiCodec(loaded.config.bicodec)
    samples = load_audio(recording, config.sample_rate)
    if config.volume_normalize:
        samples = volume_normalize(samples)
    clip = reference_clip(samples, config.ref_segment_samples)[None].astype(np.float32)
    wave, their_clip = tokenizer.process_audio(recording)
    rows = [compare("volume-normalized samples", samples, wave), compare("reference clip", clip, their_clip)]

    kept: dict[str, np.ndarray] = {}
    hooks = [
        tokenizer.model.get_submodule(path).register_forward_hook(
            lambda _, __, output, name=name: kept.__setitem__(name, output.numpy())
        )
        for name, _, path, _ in STAGES
    ]
    with torch.no_grad():
        features = tokenizer.extract_wav2vec2_features(wave)
        batch = {"feat": features, "ref_wav": their_clip, "wav": torch.from_numpy(wave)[None].float()}
        theirs = tokenizer.model(batch)
        their_mel = tokenizer.model.mel_transformer(their_clip).squeeze(1)
        semantic_ids, global_ids = tokenizer.model.tokenize(batch)
    for hook in hooks:
        hook.remove()

    apply = jax.jit(lambda *inputs: codec.apply(*inputs, train=False, capture_intermediates=True))
    ours, captured = apply(loaded.variables["bicodec"], features.numpy(), clip)
    mel = mel_spectrogram(clip, config.bicodec.mel_params)
    rows.append(compare("mel spectrogram", mel, their_mel.transpose(1, 2)))
    for name, path, _, channels_first in STAGES:
        node = captured["intermediates"]
        for key in path.split("/"):
            node = node[key]
        rows.append(compare(name, node["__call__"][0], kept[name].swapaxes(1, 2) if channels_first else kept[name]))
    rows.append(compare("x-vector", ours.x_vector, theirs["x_vector"].numpy()))
    rows.append(compare("d-vector", ours.d_vector, theirs["d_vector"].numpy()))
    ids = {
        "semantic ids of the features": (ours.semantic_ids.flatten().tolist(), semantic_ids.flatten().tolist()),
        "global ids of the clip": (ours.global_ids.flatten().tolist(), global_ids.flatten().tolist()),
    }
    rows.append(compare("waveform", ours.recons, theirs["recons"][:, 0].numpy(), **WAVEFORM))
    return rows, ids


def load_reference(reference: Path, source: Path) -> Any:
    """Loads the official tokenizer (wav2vec2 and BiCodec) with the official weights, on the CPU.

    Raises:
      SparkError: the checkout has no sparktts, a package is missing, or the weights do not load.
    """
    if not (reference / "sparktts").is_dir():
        raise SparkError(f"{reference}: has no sparktts; expected a checkout of the official repository")
    sys.path.insert(0, str(reference))
    with needs_extra("parity"):
        import torch
        from sparktts.models.audio_tokenizer import BiCodecTokenizer
    try:
        return BiCodecTokenizer(source, torch.device("cpu"))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = one_line(error, 300)
        raise SparkError(f"{source}: the official code cannot load it ({reason})") from error


if __name__ == "__main__":
    typer.run(main)
