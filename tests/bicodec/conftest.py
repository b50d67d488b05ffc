"""The reference's goldens, and its parameter names and layouts for reading them into this library's trees.

Regular expressions over names, with the transform by name and rank: [out, in, kernel] → [kernel, in, out] and so
on. Kept apart from the library's conversion table, so that neither can hide a mistake of the other.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.flax import load_file

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import BiCodecConfig, from_mapping

ASSETS = Path(__file__).parents[1] / "assets" / "bicodec"

RENAMES = [
    (r"^encoder\.encoder\.", "encoder.backbone."),
    (r"\.vocos_backbone\.", ".backbone."),
    (r"\.downsample\.(\d+)\.1\.", r".stage_\1.backbone."),
    (r"\.downsample\.(\d+)\.0\.de_conv_upsampler\.1\.", r".stage_\1.sampling.upsample_filter."),
    (r"\.downsample\.(\d+)\.0\.conv_downsampler\.1\.", r".stage_\1.sampling.downsample_filter."),
    (r"\.convnext\.(\d+)\.", r".block_\1."),
    (r"\.dwconv\.", ".depthwise."),
    (r"\.pwconv1\.", ".expand."),
    (r"\.pwconv2\.", ".contract."),
    (r"\.final_layer_norm\.", ".final_norm."),
    (r"net\.linear_pre\.", "net.linear_in."),
    (r"net\.linear\.", "net.linear_out."),
    (r"^quantizer\.codebook\.weight$", "quantizer.codebook"),
    (r"^decoder\.model\.0\.", "wave_generator.conv_in."),
    (r"^decoder\.model\.{last_snake}\.", "wave_generator.snake."),
    (r"^decoder\.model\.{last_conv}\.", "wave_generator.conv_out."),
    (r"^decoder\.model\.(\d+)\.block\.0\.", r"wave_generator.block_<\1>.snake."),
    (r"^decoder\.model\.(\d+)\.block\.1\.", r"wave_generator.block_<\1>.upsample."),
    (r"^decoder\.model\.(\d+)\.block\.(\d+)\.block\.0\.", r"wave_generator.block_<\1>.unit_<<\2>>.snake_0."),
    (r"^decoder\.model\.(\d+)\.block\.(\d+)\.block\.1\.", r"wave_generator.block_<\1>.unit_<<\2>>.conv_0."),
    (r"^decoder\.model\.(\d+)\.block\.(\d+)\.block\.2\.", r"wave_generator.block_<\1>.unit_<<\2>>.snake_1."),
    (r"^decoder\.model\.(\d+)\.block\.(\d+)\.block\.3\.", r"wave_generator.block_<\1>.unit_<<\2>>.conv_1."),
    (r"^speaker_encoder\.speaker_encoder\.", "speaker_encoder.ecapa."),
    (r"^speaker_encoder\.perceiver_sampler\.", "speaker_encoder.perceiver."),
    (r"\.perceiver\.layers\.(\d+)\.0\.", r".perceiver.attention_\1."),
    (r"\.perceiver\.layers\.(\d+)\.1\.0\.", r".perceiver.feed_forward_\1.expand."),
    (r"\.perceiver\.layers\.(\d+)\.1\.2\.", r".perceiver.feed_forward_\1.contract."),
    (r"\.perceiver\.norm\.gamma", ".perceiver.gamma"),
    (r"\.ecapa\.layer(\d)\.", r".ecapa.layer_\1."),
    (r"\.se_res2block\.0\.", ".conv_in."),
    (r"\.se_res2block\.1\.convs\.(\d+)\.", r".res2.split_\1.conv."),
    (r"\.se_res2block\.1\.bns\.(\d+)\.", r".res2.split_\1.bn."),
    (r"\.se_res2block\.2\.", ".conv_out."),
    (r"\.se_res2block\.3\.", ".gate."),
    (r"\.linear([12])\.", r".linear_\1."),
    (r"\.bn\.", ".norm."),
    (r"<<(\d+)>>", lambda m: str(int(m[1]) - 2)),
    (r"<(\d+)>", lambda m: str(int(m[1]) - 1)),
    (r"weight_v$", "kernel_v"),
    (r"weight_g$", "kernel_g"),
    (r"(norm)\.weight$", r"\1.scale"),
    (r"\.weight$", ".kernel"),
    (r"running_mean$", "mean"),
    (r"running_var$", "var"),
]


def our_name(name: str, stages: int = 4) -> tuple[str, str]:
    """The collection and the path of a torch parameter or buffer of a BiCodec with so many upsampling blocks."""
    path = name
    for pattern, replacement in RENAMES:
        pattern = pattern.replace("{last_snake}", str(stages + 1)).replace("{last_conv}", str(stages + 2))
        path = re.sub(pattern, replacement, path)
    collection = "params"
    if name.endswith(("running_mean", "running_var")):
        collection = "batch_stats"
    elif name.endswith("cluster_size"):
        collection = "code_statistics"
    return collection, path


def our_array(name: str, array: np.ndarray) -> np.ndarray:
    """A torch tensor (or its gradient) in this library's layout; a transposed kernel is known by its name."""
    if name.endswith(("alpha", "weight_g")):
        return array.reshape(-1)
    if array.ndim == 3:
        transposed = is_transposed(name)
        return np.transpose(array, (2, 0, 1) if transposed and array.shape[1] > 1 else (2, 1, 0))
    if array.ndim == 2 and not name.endswith(("codebook.weight", "latents")):
        return array.T
    return array


def is_transposed(name: str) -> bool:
    return re.match(r"^decoder\.model\.\d+\.block\.1\.", name) is not None


def our_tree(tensors: dict[str, np.ndarray]) -> dict:
    """Variables of `BiCodec` from the reference's state dictionary."""
    variables: dict = {}
    for name, array in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        collection, path = our_name(name)
        node = variables.setdefault(collection, {})
        *parents, leaf = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = our_array(name, array)
    return variables


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    return load_file(ASSETS / "golden.safetensors")


@pytest.fixture(scope="session")
def modules_golden() -> dict[str, np.ndarray]:
    return load_file(ASSETS / "modules_golden.safetensors")


@pytest.fixture(scope="session")
def variables() -> dict:
    return our_tree(load_file(ASSETS / "model.safetensors"))


@pytest.fixture(scope="session")
def codec() -> BiCodec:
    settings = yaml.safe_load((ASSETS / "config.yaml").read_text())
    tokenizer = settings["audio_tokenizer"]
    del tokenizer["quantizer"]["use_l2_normlize"]  # always so
    tokenizer["speaker_encoder"] |= settings["fixture_overrides"]
    return BiCodec(from_mapping(BiCodecConfig, tokenizer, "config.yaml"))


@pytest.fixture(scope="session")
def ours():
    """The function (torch name, torch tensor) → (path in our "params", tensor in our layout)."""
    return lambda name, array: (our_name(name)[1], our_array(name, array))
