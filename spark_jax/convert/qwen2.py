"""The LLM: transformers' Qwen2ForCausalLM, from `LLM/{config.json, model.safetensors}`."""

from spark_jax.config import Qwen2Config
from spark_jax.convert.engine import Rule

# The head is the embedding where they are tied; older files also carry the rotary frequencies.
IGNORED_WHEN_TIED = (r"lm_head\.weight",)
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def rules(config: Qwen2Config) -> list[Rule]:
    """The table: source name, our path, axes."""
    layers = config.num_hidden_layers

    def layer(source: str, target: str, axes: str = "") -> Rule:
        return Rule(f"model.layers.{{}}.{source}", f"params/layers/{target}", axes, layers)

    def projection(source: str, target: str) -> list[Rule]:
        return [
            layer(f"self_attn.{source}.weight", f"attention/{target}/kernel", "(heads dim) in -> in heads dim"),
            layer(f"self_attn.{source}.bias", f"attention/{target}/bias", "(heads dim) -> heads dim"),
        ]

    table = [
        Rule("model.embed_tokens.weight", "params/embed/embedding"),
        layer("input_layernorm.weight", "input_norm/scale"),
        *projection("q_proj", "query"),
        *projection("k_proj", "key"),
        *projection("v_proj", "value"),
        layer("self_attn.o_proj.weight", "attention/out/kernel", "out (heads dim) -> heads dim out"),
        layer("post_attention_layernorm.weight", "post_attention_norm/scale"),
        layer("mlp.gate_proj.weight", "mlp/gate/kernel", "out in -> in out"),
        layer("mlp.up_proj.weight", "mlp/up/kernel", "out in -> in out"),
        layer("mlp.down_proj.weight", "mlp/down/kernel", "out in -> in out"),
        Rule("model.norm.weight", "params/norm/scale"),
    ]
    if not config.tie_word_embeddings:
        table.append(Rule("lm_head.weight", "params/head", "out in -> in out"))
    return table


def ignored(config: Qwen2Config) -> tuple[str, ...]:
    """Source names that the model does not need."""
    return IGNORED + (IGNORED_WHEN_TIED if config.tie_word_embeddings else ())
