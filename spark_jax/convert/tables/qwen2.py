"""The LLM: transformers' Qwen2ForCausalLM (Qwen2.5 too) or Qwen3ForCausalLM."""

from spark_jax.config import Qwen2Config
from spark_jax.convert.engine import Rule, Table

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def table(config: Qwen2Config) -> Table:
    """Returns the table.

    A tied head may stand in the file as well; older files carry the rotary frequencies; a decoder that was saved
    without its head (Qwen2Model) lacks the first part of the names.
    """
    return Table(
        rules(config),
        ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        copies={HEAD: EMBEDDING} if config.tie_word_embeddings else {},
        aliases=((r"^(embed_tokens|layers|norm)\.", r"model.\1."),),
    )


def rules(config: Qwen2Config) -> list[Rule]:
    """Returns the rules: official name, our path, axes."""
    layers = config.num_hidden_layers

    def layer(source: str, target: str, axes: str = "") -> Rule:
        return Rule(f"model.layers.{{}}.{source}", f"params/layers/{target}", axes, layers)

    def projection(source: str, target: str) -> list[Rule]:
        kernel = layer(f"self_attn.{source}.weight", f"attention/{target}/kernel", "(heads dim) in -> in heads dim")
        bias = layer(f"self_attn.{source}.bias", f"attention/{target}/bias", "(heads dim) -> heads dim")
        return [kernel, bias] if config.attention_bias else [kernel]

    lines = [
        Rule(EMBEDDING, "params/embed/embedding"),
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
    if config.qk_norm:
        lines.append(layer("self_attn.q_norm.weight", "attention/query_norm/scale"))
        lines.append(layer("self_attn.k_norm.weight", "attention/key_norm/scale"))
    if not config.tie_word_embeddings:
        lines.append(Rule(HEAD, "params/head", "out in -> in out"))
    return lines
