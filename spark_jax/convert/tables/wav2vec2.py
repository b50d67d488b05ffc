"""The feature extractor: transformers' Wav2Vec2Model or Wav2Vec2ForPreTraining."""

import numpy as np

from spark_jax.config import Wav2Vec2Config
from spark_jax.convert.engine import Rule, Table


def table(config: Wav2Vec2Config) -> Table:
    """Returns the table.

    Not needed here: heads, masking, the final norm, layers above the last tap. The way back writes one layer above
    it, of zeros, which passes its input on: transformers 4 puts the final norm on the last hidden state, and the
    last tap must stay without it.
    """
    kept = max(config.feature_layers)
    above = "|".join(str(i) for i in range(kept, config.num_hidden_layers))
    hidden = np.broadcast_to(np.float32(0), (config.hidden_size,))
    return Table(
        rules(config),
        ignored=(
            r"masked_spec_embed",
            r"encoder\.layer_norm\.(weight|bias)",
            r"quantizer\..*",
            r"project_(hid|q)\..*",
            r"lm_head\..*",
            *([rf"encoder\.layers\.({above})\..*"] if above else []),
        ),
        aliases=(
            (r"^wav2vec2\.", ""),  # pre-training checkpoints have heads beside the model
            (r"\.weight_g$", ".parametrizations.weight.original0"),  # the names of before torch 2
            (r"\.weight_v$", ".parametrizations.weight.original1"),
        ),
        constants={
            "masked_spec_embed": hidden,
            "encoder.layer_norm.weight": hidden + 1,
            "encoder.layer_norm.bias": hidden,
            **_idle_layer(f"encoder.layers.{kept}", config),
        },
    )


def _idle_layer(name: str, config: Wav2Vec2Config) -> dict[str, np.ndarray]:
    """Tensors of a transformer layer whose two branches add nothing."""
    hidden, wide = config.hidden_size, config.intermediate_size
    shapes = {f"attention.{part}_proj": (hidden, hidden) for part in ("q", "k", "v", "out")} | {
        "feed_forward.intermediate_dense": (wide, hidden),
        "feed_forward.output_dense": (hidden, wide),
        "layer_norm": (hidden,),
        "final_layer_norm": (hidden,),
    }
    tensors = {}
    for part, shape in shapes.items():
        gain = np.float32(1 if part.endswith("norm") else 0)
        tensors[f"{name}.{part}.weight"] = np.broadcast_to(gain, shape)
        tensors[f"{name}.{part}.bias"] = np.broadcast_to(np.float32(0), shape[:1])
    return tensors


def rules(config: Wav2Vec2Config) -> list[Rule]:
    """Returns the rules: official name, our path, axes."""
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

    lines = []
    for i in range(len(config.conv_dim)):
        source, target = f"feature_extractor.conv_layers.{i}", "params/feature_extractor"
        lines += [
            Rule(f"{source}.conv.weight", f"{target}/conv_{i}/kernel", "out in kernel -> kernel in out"),
            Rule(f"{source}.layer_norm.weight", f"{target}/norm_{i}/scale"),
            Rule(f"{source}.layer_norm.bias", f"{target}/norm_{i}/bias"),
        ]
        if config.conv_bias:
            lines.append(Rule(f"{source}.conv.bias", f"{target}/conv_{i}/bias"))
    source, target = "feature_projection", "params/feature_projection"
    lines += [
        Rule(f"{source}.layer_norm.weight", f"{target}/norm/scale"),
        Rule(f"{source}.layer_norm.bias", f"{target}/norm/bias"),
        Rule(f"{source}.projection.weight", f"{target}/projection/kernel", "out in -> in out"),
        Rule(f"{source}.projection.bias", f"{target}/projection/bias"),
    ]
    source, target = "encoder.pos_conv_embed.conv", "params/positional_conv"
    lines += [
        # Weight norm over the kernel's positions (dim 2), unlike every other convolution here.
        Rule(f"{source}.parametrizations.weight.original0", f"{target}/g", "1 1 kernel -> kernel"),
        Rule(f"{source}.parametrizations.weight.original1", f"{target}/v", "out in kernel -> kernel in out"),
        Rule(f"{source}.bias", f"{target}/bias"),
    ]
    lines += norm("layer_norm", "attention_norm")
    lines += projection("q_proj", "query") + projection("k_proj", "key") + projection("v_proj", "value")
    lines += [
        layer("attention.out_proj.weight", "attention/out/kernel", "out (heads dim) -> heads dim out"),
        layer("attention.out_proj.bias", "attention/out/bias"),
    ]
    lines += norm("final_layer_norm", "mlp_norm")
    lines += linear("feed_forward.intermediate_dense", "up") + linear("feed_forward.output_dense", "down")
    return lines
