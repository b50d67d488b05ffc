"""BiCodec: the release's `BiCodec/model.safetensors`."""

import numpy as np

from spark_jax.bicodec.sampling import STAGE_LAYERS
from spark_jax.bicodec.wave_generator import DILATIONS
from spark_jax.config import BiCodecConfig, SpeakerEncoderConfig, VocosConfig, WaveGeneratorConfig
from spark_jax.convert.engine import Rule, Table

_KERNEL = "out in kernel -> kernel in out"
_TRANSPOSED_KERNEL = "in out kernel -> kernel in out"
_LINEAR = "out in -> in out"


def table(config: BiCodecConfig) -> Table:
    """Returns the table; what only the release's file has are the counters of torch's batch norms."""
    lines = rules(config)
    norms = [rule.source.removesuffix("running_mean") for rule in lines if rule.source.endswith("running_mean")]
    return Table(
        lines,
        ignored=(r".*\.num_batches_tracked", r"mel_transformer\..*"),  # the latter: files written by other tools
        # torch renamed the tensors of weight norm; files of either age are read.
        aliases=(
            (r"\.parametrizations\.weight\.original0$", ".weight_g"),
            (r"\.parametrizations\.weight\.original1$", ".weight_v"),
        ),
        constants={f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms},
    )


def rules(config: BiCodecConfig) -> list[Rule]:
    """Returns the rules: official name, our path, axes."""
    quantizer = [
        Rule("quantizer.codebook.weight", "params/quantizer/codebook"),
        Rule("quantizer.cluster_size", "code_statistics/quantizer/cluster_size"),
    ]
    if config.quantizer.input_dim != config.quantizer.codebook_dim:
        quantizer += _weight_norm_conv("quantizer.in_project", "params/quantizer/in_project")
        quantizer += _weight_norm_conv("quantizer.out_project", "params/quantizer/out_project")
    return [
        *_encoder(config.encoder),
        *quantizer,
        *_speaker_encoder(config.speaker_encoder),
        *_decoder("prenet", config.prenet),
        *_decoder("postnet", config.postnet),
        *_wave_generator(config.decoder),
    ]


def _encoder(config: VocosConfig) -> list[Rule]:
    return [
        *_backbone("encoder.encoder", "params/encoder/backbone", config.vocos_num_layers),
        *_stages("encoder", config.sample_ratios, down=True),
        *_linear("encoder.project", "params/encoder/project"),
    ]


def _decoder(name: str, config: VocosConfig) -> list[Rule]:
    target = f"params/{name}"
    layers, conditioned = config.vocos_num_layers, config.condition_dim is not None
    return [
        *_linear(f"{name}.linear_pre", f"{target}/linear_in"),
        *_stages(name, config.sample_ratios, down=False),
        *_backbone(f"{name}.vocos_backbone", f"{target}/backbone", layers, conditioned),
        *_linear(f"{name}.linear", f"{target}/linear_out"),
    ]


def _stages(name: str, ratios: tuple[int, ...], down: bool) -> list[Rule]:
    """Sampling stages; the release calls them "downsample" in every part."""
    lines = []
    for i, ratio in enumerate(ratios):
        source, target = f"{name}.downsample.{i}", f"params/{name}/stage_{i}"
        if ratio > 1 and down:
            lines += _conv(f"{source}.0.conv_downsampler.1", f"{target}/sampling/downsample_filter")
        elif ratio > 1:
            # A depthwise transposed kernel is [channels, 1, kernel] as well.
            lines += _conv(f"{source}.0.de_conv_upsampler.1", f"{target}/sampling/upsample_filter")
        lines += _backbone(f"{source}.1", f"{target}/backbone", STAGE_LAYERS)
    return lines


def _backbone(source: str, target: str, layers: int, conditioned: bool = False) -> list[Rule]:
    normalization = _ada_norm if conditioned else _norm
    lines = _conv(f"{source}.embed", f"{target}/embed") + normalization(f"{source}.norm", f"{target}/norm")
    for i in range(layers):
        block, ours = f"{source}.convnext.{i}", f"{target}/block_{i}"
        lines += _conv(f"{block}.dwconv", f"{ours}/depthwise")
        lines += normalization(f"{block}.norm", f"{ours}/norm")
        lines += _linear(f"{block}.pwconv1", f"{ours}/expand") + _linear(f"{block}.pwconv2", f"{ours}/contract")
        lines.append(Rule(f"{block}.gamma", f"{ours}/gamma"))
    return lines + _norm(f"{source}.final_layer_norm", f"{target}/final_norm")


def _speaker_encoder(config: SpeakerEncoderConfig) -> list[Rule]:
    source, target = "speaker_encoder", "params/speaker_encoder"
    lines = _ecapa(config)
    perceiver, ours = f"{source}.perceiver_sampler", f"{target}/perceiver"
    if config.ecapa_latent_channels != config.latent_dim:
        lines += _linear(f"{perceiver}.proj_context", f"{ours}/proj_context")
    lines.append(Rule(f"{perceiver}.latents", f"{ours}/latents"))
    for i in range(config.perceiver_depth):
        for name in ("to_q", "to_kv", "to_out"):
            lines.append(
                Rule(f"{perceiver}.layers.{i}.0.{name}.weight", f"{ours}/attention_{i}/{name}/kernel", _LINEAR)
            )
        lines += _linear(f"{perceiver}.layers.{i}.1.0", f"{ours}/feed_forward_{i}/expand")
        lines += _linear(f"{perceiver}.layers.{i}.1.2", f"{ours}/feed_forward_{i}/contract")
    lines.append(Rule(f"{perceiver}.norm.gamma", f"{ours}/gamma"))
    if config.latent_dim != len(config.fsq_levels):
        for name in ("project_in", "project_out"):
            lines += _linear(f"{source}.quantizer.{name}", f"{target}/quantizer/{name}")
    return lines + _linear(f"{source}.project", f"{target}/project")


def _ecapa(config: SpeakerEncoderConfig) -> list[Rule]:
    source, target = "speaker_encoder.speaker_encoder", "speaker_encoder/ecapa"
    lines = _conv_relu_norm(f"{source}.layer1", f"{target}/layer_1")
    for i in (2, 3, 4):
        block, ours = f"{source}.layer{i}.se_res2block", f"{target}/layer_{i}"
        lines += _conv_relu_norm(f"{block}.0", f"{ours}/conv_in")
        for j in range(config.res2_scale - 1):
            lines += _conv(f"{block}.1.convs.{j}", f"params/{ours}/res2/split_{j}/conv")
            lines += _batch_norm(f"{block}.1.bns.{j}", f"{ours}/res2/split_{j}/norm")
        lines += _conv_relu_norm(f"{block}.2", f"{ours}/conv_out")
        lines += _linear(f"{block}.3.linear1", f"params/{ours}/gate/linear_1")
        lines += _linear(f"{block}.3.linear2", f"params/{ours}/gate/linear_2")
    lines += _conv(f"{source}.conv", f"params/{target}/conv")
    for i in (1, 2):
        lines += _conv(f"{source}.pool.linear{i}", f"params/{target}/pool/linear_{i}")
    lines += _batch_norm(f"{source}.bn", f"{target}/norm")
    return lines + _linear(f"{source}.linear", f"params/{target}/linear")


def _wave_generator(config: WaveGeneratorConfig) -> list[Rule]:
    target = "params/wave_generator"
    lines = _weight_norm_conv("decoder.model.0", f"{target}/conv_in")
    for i in range(len(config.rates)):
        block, ours = f"decoder.model.{i + 1}.block", f"{target}/block_{i}"
        lines.append(_snake(f"{block}.0", f"{ours}/snake"))
        lines += [
            # Weight norm per input channel: the first dimension of a transposed kernel in torch.
            Rule(f"{block}.1.weight_g", f"{ours}/upsample/kernel_g", "in 1 1 -> in"),
            Rule(f"{block}.1.weight_v", f"{ours}/upsample/kernel_v", _TRANSPOSED_KERNEL),
            Rule(f"{block}.1.bias", f"{ours}/upsample/bias"),
        ]
        for j in range(len(DILATIONS)):
            unit, our_unit = f"{block}.{j + 2}.block", f"{ours}/unit_{j}"
            lines.append(_snake(f"{unit}.0", f"{our_unit}/snake_0"))
            lines += _weight_norm_conv(f"{unit}.1", f"{our_unit}/conv_0")
            lines.append(_snake(f"{unit}.2", f"{our_unit}/snake_1"))
            lines += _weight_norm_conv(f"{unit}.3", f"{our_unit}/conv_1")
    last = len(config.rates) + 1
    lines.append(_snake(f"decoder.model.{last}", f"{target}/snake"))
    return lines + _weight_norm_conv(f"decoder.model.{last + 1}", f"{target}/conv_out")


def _linear(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/kernel", _LINEAR), Rule(f"{source}.bias", f"{target}/bias")]


def _conv(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/kernel", _KERNEL), Rule(f"{source}.bias", f"{target}/bias")]


def _weight_norm_conv(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight_g", f"{target}/kernel_g", "out 1 1 -> out"),
        Rule(f"{source}.weight_v", f"{target}/kernel_v", _KERNEL),
        Rule(f"{source}.bias", f"{target}/bias"),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]


def _ada_norm(source: str, target: str) -> list[Rule]:
    return _linear(f"{source}.scale", f"{target}/scale") + _linear(f"{source}.shift", f"{target}/shift")


def _batch_norm(source: str, target: str) -> list[Rule]:
    """`target` without its collection: parameters and running statistics live in two."""
    return [
        *_norm(source, f"params/{target}"),
        Rule(f"{source}.running_mean", f"batch_stats/{target}/mean"),
        Rule(f"{source}.running_var", f"batch_stats/{target}/var"),
    ]


def _conv_relu_norm(source: str, target: str) -> list[Rule]:
    return _conv(f"{source}.conv", f"params/{target}/conv") + _batch_norm(f"{source}.bn", f"{target}/norm")


def _snake(source: str, target: str) -> Rule:
    return Rule(f"{source}.alpha", f"{target}/alpha", "1 channels 1 -> channels")
