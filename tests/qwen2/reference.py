"""The golden decoders of tests/assets: their configurations, and their parameters in this library's layout."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.flax import load_file

from spark_jax.config import Qwen2Config

ASSETS = Path(__file__).parents[1] / "assets"


def load_config(name: str = "qwen2") -> Qwen2Config:
    raw = json.loads((ASSETS / name / "config.json").read_text())
    raw |= raw.get("rope_parameters", {}) | {"qk_norm": raw["model_type"] == "qwen3"}
    return Qwen2Config(**{field: raw[field] for field in Qwen2Config.__dataclass_fields__ if field in raw})


def to_tree(tensors: dict[str, np.ndarray], config: Qwen2Config, layers: int) -> dict:
    """Torch tensors of the first `layers` layers as the parameter tree of `Qwen2`."""
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def stack(name, change=lambda tensor: tensor):
        return jnp.stack([change(tensors[f"model.layers.{index}.{name}"]) for index in range(layers)])

    def projection(name, count):
        tree = {"kernel": stack(f"self_attn.{name}.weight", lambda w: w.T.reshape(-1, count, head_dim))}
        if config.attention_bias:
            tree["bias"] = stack(f"self_attn.{name}.bias", lambda b: b.reshape(count, head_dim))
        return tree

    def out(weight):
        return weight.T.reshape(heads, head_dim, -1)

    norms = {"query_norm": "q_norm", "key_norm": "k_norm"} if config.qk_norm else {}
    head = {} if config.tie_word_embeddings else {"head": jnp.asarray(tensors["lm_head.weight"].T)}
    return head | {
        "embed": {"embedding": jnp.asarray(tensors["model.embed_tokens.weight"])},
        "norm": {"scale": jnp.asarray(tensors["model.norm.weight"])},
        "layers": {
            "input_norm": {"scale": stack("input_layernorm.weight")},
            "post_attention_norm": {"scale": stack("post_attention_layernorm.weight")},
            "attention": {
                "query": projection("q_proj", heads),
                "key": projection("k_proj", kv_heads),
                "value": projection("v_proj", kv_heads),
                "out": {"kernel": stack("self_attn.o_proj.weight", out)},
                **{ours: {"scale": stack(f"self_attn.{theirs}.weight")} for ours, theirs in norms.items()},
            },
            "mlp": {
                name: {"kernel": stack(f"mlp.{name}_proj.weight", np.transpose)} for name in ("gate", "up", "down")
            },
        },
    }


def load(name: str = "qwen2") -> tuple[Qwen2Config, dict, dict[str, np.ndarray]]:
    """Configuration, parameters, goldens."""
    config = load_config(name)
    params = to_tree(load_file(ASSETS / name / "model.safetensors"), config, config.num_hidden_layers)
    return config, params, load_file(ASSETS / name / "golden.safetensors")
