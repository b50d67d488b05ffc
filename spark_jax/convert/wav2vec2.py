"""The feature extractor: transformers' Wav2Vec2Model or Wav2Vec2ForPreTraining."""

from collections.abc import Mapping

from spark_jax.config import Wav2Vec2Config
from spark_jax.convert.engine import Rule
from spark_jax.convert.tensors import SourceTensor


def rules(config: Wav2Vec2Config) -> list[Rule]:
    """The table: source name (as `canonical_names` gives it), our path, axes."""
    depth = max(config.feature_layers)

    def layer(source: str, target: str, axes: str = "") -> Rule:
        return Rule(f"encoder.layers.{{}}.{source}", f"params/layers/layer/{target}", axes, depth)

    def linear(source: str, target: str) -> list[Rule]:
        return [
            layer(f"{source}.weight", f"{target}/kernel", "out in -> in out"),
            layer(f"{source}.bias", f"{target}/bias"),
        ]

    def norm(source: str, target: str) -> list[Rule]:
        return [layer(f"{source}.weight", f"{target}/scale"), layer(f"{source}.bias", f"{target}/bias")]

    def projection(source: str, target: str) -> list[Rule]:
        return [
            layer(f"attention.{source}.weight", f"attention/{target}/kernel", "(heads dim) in -> in heads dim"),
            layer(f"attention.{source}.bias", f"attention/{target}/bias", "(heads dim) -> heads dim"),
        ]

    table = []
    for i in range(len(config.conv_dim)):
        source, target = f"feature_extractor.conv_layers.{i}", "params/feature_extractor"
        table += [
            Rule(f"{source}.conv.weight", f"{target}/conv_{i}/kernel", "out in kernel -> kernel in out"),
            Rule(f"{source}.layer_norm.weight", f"{target}/norm_{i}/scale"),
            Rule(f"{source}.layer_norm.bias", f"{target}/norm_{i}/bias"),
        ]
        if config.conv_bias:
            table.append(Rule(f"{source}.conv.bias", f"{target}/conv_{i}/bias"))
    source, target = "feature_projection", "params/feature_projection"
    table += [
        Rule(f"{source}.layer_norm.weight", f"{target}/norm/scale"),
        Rule(f"{source}.layer_norm.bias", f"{target}/norm/bias"),
        Rule(f"{source}.projection.weight", f"{target}/projection/kernel", "out in -> in out"),
        Rule(f"{source}.projection.bias", f"{target}/projection/bias"),
    ]
    source, target = "encoder.pos_conv_embed.conv", "params/positional_conv"
    table += [
        # Weight norm over the kernel's positions (dim 2), unlike every other convolution here.
        Rule(f"{source}.weight_g", f"{target}/g", "1 1 kernel -> kernel"),
        Rule(f"{source}.weight_v", f"{target}/v", "out in kernel -> kernel in out"),
        Rule(f"{source}.bias", f"{target}/bias"),
    ]
    table += norm("layer_norm", "attention_norm")
    table += projection("q_proj", "query") + projection("k_proj", "key") + projection("v_proj", "value")
    table += [
        layer("attention.out_proj.weight", "attention/out/kernel", "out (heads dim) -> heads dim out"),
        layer("attention.out_proj.bias", "attention/out/bias"),
    ]
    table += norm("final_layer_norm", "mlp_norm")
    table += linear("feed_forward.intermediate_dense", "up") + linear("feed_forward.output_dense", "down")
    return table


def ignored(config: Wav2Vec2Config) -> tuple[str, ...]:
    """Source names that features do not need: heads, masking, the final norm, layers above the last tap."""
    kept = max(config.feature_layers)
    above = "|".join(str(i) for i in range(kept, config.num_hidden_layers))
    return (
        r"masked_spec_embed", r"encoder\.layer_norm\.(weight|bias)", r"quantizer\..*", r"project_(hid|q)\..*",
        r"lm_head\..*", *([rf"encoder\.layers\.({above})\..*"] if above else []),
    )  # fmt: skip


def canonical_names(tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Names without the `wav2vec2.` prefix that pre-training checkpoints carry before those of the model."""
    return {name.removeprefix("wav2vec2."): tensor for name, tensor in tensors.items()}
