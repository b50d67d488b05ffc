"""LoRA adapters: merged as PEFT computes them, or refused by name."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import official_layout
from safetensors.numpy import load_file, save_file

from spark_jax.config import Qwen2Config
from spark_jax.convert.engine import source_shapes
from spark_jax.convert.formats.tensors import BFLOAT16, SourceTensor
from spark_jax.convert.lora import merge
from spark_jax.convert.tables import qwen2
from spark_jax.errors import ManyFaultsError, SparkError
from spark_jax.model_directory.parameters import abstract_part

CONFIG = Qwen2Config(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
)
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
MODULES = [f"model.layers.{layer}.{name}" for layer in range(2) for name in LINEAR]
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)


def values(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def base(config=CONFIG, dtype=np.float32):
    shapes = source_shapes(qwen2.rules(config), abstract_part("llm", config))
    arrays = {name: values(*shape, seed=i).astype(dtype) for i, (name, shape) in enumerate(shapes.items())}
    return {name: SourceTensor(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}


def factors(tensors, module, rank, seed=1):
    rows, columns = tensors[f"{module}.weight"].shape
    return values(rank, columns, seed=seed), values(rows, rank, seed=seed + 1)


def write(folder, modules, tensors, whole=None, rank=4, ranks=None, **settings):
    """An adapter on linear modules, as PEFT saves it; `whole` are tensors by their names in the base."""
    folder.mkdir()
    content = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(content | settings))
    saved = {}
    for module in modules:
        a, b = factors(tensors, module, (ranks or {}).get(module, rank))
        saved |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    saved = {f"base_model.model.{name}": value for name, value in (saved | (whole or {})).items()}
    save_file(saved, folder / "adapter_model.safetensors")
    return folder


def assert_merged(merged, tensors, expected):
    """`expected` in place of the base's tensors; the others are untouched."""
    assert merged.keys() == tensors.keys() | expected.keys()
    for name, tensor in merged.items():
        wanted = expected.get(name, tensors[name].read() if name in tensors else None)
        np.testing.assert_allclose(tensor.read(), wanted, rtol=0, atol=1e-5)
        assert (tensor.shape, tensor.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_every_linear_module(tmp_path, dtype):
    """In float32, whatever the base is stored as."""
    tensors = base(dtype=dtype)
    merged, config = merge(tensors, CONFIG, write(tmp_path / "lora", MODULES, tensors))
    assert config == CONFIG
    expected = {}
    for module in MODULES:
        a, b = factors(tensors, module, 4)
        expected[f"{module}.weight"] = tensors[f"{module}.weight"].read().astype(np.float32) + 2 * b @ a
    assert_merged(merged, tensors, expected)


@pytest.mark.parametrize("change", ["", "module.", "._orig_mod"])
def test_a_pickled_adapter(tmp_path, change):
    """adapter_model.bin of older PEFT versions, read without running it; names as wrappers leave them."""
    tensors = base()
    folder = write(tmp_path / "lora", MODULES, tensors)
    expected = {name: tensor.read() for name, tensor in merge(tensors, CONFIG, folder)[0].items()}
    saved = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    if change.startswith("."):
        saved = {name.replace(".layers", f"{change}.layers"): values for name, values in saved.items()}
    else:
        saved = {change + name: values for name, values in saved.items()}
    shapes = {name: values.shape for name, values in saved.items()}
    official_layout.write_torch_zip(folder / "adapter_model.bin", shapes, lambda name, shape: saved[name])
    merged, config = merge(tensors, CONFIG, folder)
    assert config == CONFIG and merged.keys() == expected.keys()
    for name, tensor in merged.items():
        np.testing.assert_array_equal(tensor.read(), expected[name])
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02cos\nsystem\n(X\x04\0\0\0exittR.")
    with pytest.raises(SparkError, match="adapter_model.bin: a bare pickle"):
        merge(tensors, CONFIG, folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(SparkError, match="no adapter's weights; expected .*safetensors or adapter_model.bin"):
        merge(tensors, CONFIG, folder)


def test_ranks_and_scalings_of_single_modules(tmp_path):
    tensors = base()
    ranks = {"model.layers.1.mlp.up_proj": 8, "model.layers.0.self_attn.q_proj": 2}
    patterns = {
        "rank_pattern": {"layers.1.mlp.up_proj": 8, r"layers\.0\..*q_proj": 2, "proj": 16},
        "alpha_pattern": {"up_proj": 3, "layers.0.self_attn.q_proj": 5.5},
    }
    alphas = {module: 3 if module.endswith("up_proj") else 8 for module in MODULES} | {MODULES[0]: 5.5}
    folder = write(tmp_path / "lora", MODULES, tensors, ranks=ranks, use_rslora=True, **patterns)
    merged, _ = merge(tensors, CONFIG, folder)
    for module in MODULES:
        rank = ranks.get(module, 4)
        a, b = factors(tensors, module, rank)
        expected = tensors[f"{module}.weight"].read() + alphas[module] / np.sqrt(rank) * b @ a
        np.testing.assert_allclose(merged[f"{module}.weight"].read(), expected, rtol=0, atol=1e-5)


def test_an_embedding_s_factors(tmp_path):
    """Rank first in A, the model's width first in B; a tied head keeps the base's values and is tied no longer."""
    tensors = base()
    a, b = values(4, 96, seed=7), values(32, 4, seed=8)
    whole = {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}
    folder = write(tmp_path / "lora", [], tensors, whole)
    before = tensors[f"{EMBEDDING}.weight"].read()
    merged, config = merge(tensors, CONFIG, folder)
    assert config == UNTIED
    after = {f"{EMBEDDING}.weight": before + 2 * (b @ a).T, f"{HEAD}.weight": before}
    assert_merged(merged, tensors, after)
    untied = base(UNTIED)
    merged, config = merge(untied, UNTIED, folder)
    assert config == UNTIED
    embedding = untied[f"{EMBEDDING}.weight"].read()
    assert_merged(merged, untied, {f"{EMBEDDING}.weight": embedding + 2 * (b @ a).T})


def test_a_head_s_factors_untie_it(tmp_path):
    tensors = base()
    embedding = tensors[f"{EMBEDDING}.weight"]
    a, b = factors({f"{HEAD}.weight": embedding}, HEAD, 4)
    whole = {f"{HEAD}.lora_A.weight": a, f"{HEAD}.lora_B.weight": b}
    merged, config = merge(tensors, CONFIG, write(tmp_path / "lora", [], tensors, whole))
    assert config == UNTIED
    assert_merged(merged, tensors, {f"{HEAD}.weight": embedding.read() + 2 * b @ a})


def test_modules_trained_whole(tmp_path):
    tensors, new = base(), values(96, 32, seed=9)
    old = tensors[f"{EMBEDDING}.weight"].read()
    whole, both = {f"{EMBEDDING}.weight": new}, {f"{EMBEDDING}.weight": new, f"{HEAD}.weight": new}
    saved = {"modules_to_save": ["embed_tokens"]}
    cases = {
        "embedding": (whole, saved, {f"{EMBEDDING}.weight": new, f"{HEAD}.weight": old}),
        "head": ({f"{HEAD}.weight": new}, {"modules_to_save": ["lm_head"]}, {f"{HEAD}.weight": new}),
        "apart": (both | {f"{HEAD}.weight": new + 1}, {}, both | {f"{HEAD}.weight": new + 1}),
        "alike": (both, {"modules_to_save": ["embed_tokens", "lm_head"]}, whole),
        "tied": (whole, saved | {"ensure_weight_tying": True}, whole),
        "grown": (whole, {}, whole),  # save_embedding_layers
    }
    for name, (tensors_saved, settings, expected) in cases.items():
        merged, config = merge(tensors, CONFIG, write(tmp_path / name, [], tensors, tensors_saved, **settings))
        assert config == (UNTIED if name in ("embedding", "head", "apart") else CONFIG), name
        assert_merged(merged, tensors, expected)
    apart = both | {f"{HEAD}.weight": new + 1}
    folder = write(tmp_path / "contradiction", [], tensors, apart, ensure_weight_tying=True)
    with pytest.raises(SparkError, match="ensure_weight_tying is True, and lm_head has weights of its own"):
        merge(tensors, CONFIG, folder)


def test_biases_and_wrapped_layers(tmp_path):
    tensors, new = base(), values(32, seed=5)
    whole = {"model.layers.0.self_attn.q_proj.base_layer.bias": new, "model.norm.modules_to_save.weight": new}
    merged, _ = merge(tensors, CONFIG, write(tmp_path / "lora", MODULES[:1], tensors, whole, bias="all"))
    np.testing.assert_array_equal(merged["model.layers.0.self_attn.q_proj.bias"].read(), new)
    np.testing.assert_array_equal(merged["model.norm.weight"].read(), new)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora is True: such an adapter cannot be merged"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices is \[1\]"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"some_new_method": {"x": 1}}, "some_new_method"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"r": 0}, "r is 0, expected a rank"),
        ({"r": "8"}, "r is '8'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern: q_proj is 1.5"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern: '\(' is no pattern"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head', expected a list"),
    ],
)
def test_adapters_that_cannot_be_merged_are_named(tmp_path, settings, message):
    tensors = base()
    with pytest.raises(SparkError, match=f"adapter_config.json: {message}"):
        merge(tensors, CONFIG, write(tmp_path / "lora", MODULES, tensors, **settings))


def test_faults_of_tensors_come_together(tmp_path):
    tensors = base()
    module = "model.layers.0.mlp.up_proj"
    whole = {
        f"{module}.lora_magnitude_vector": values(48),
        "model.layers.9.mlp.up_proj.lora_A.weight": values(4, 32),
        f"{MODULES[0]}.lora_A.weight": values(4, 31),
        f"{MODULES[1]}.lora_A.weight": values(3, 32),
        "model.norm.weight": values(31),
        "model.rotary.weight": values(2),
        "model.norm.lora_A.weight": values(4, 32),
        f"{MODULES[2]}.lora_B.weight": np.ones((16, 4), np.int64),
    }
    folder = write(tmp_path / "lora", [], tensors, whole)
    with pytest.raises(ManyFaultsError) as caught:
        merge(tensors, CONFIG, folder)
    for part in (
        f"{module}.lora_magnitude_vector is of no known kind",
        "model.layers.9.mlp.up_proj is no linear layer",
        f"{MODULES[0]} has no factor B",
        f"{MODULES[1]} has no factor B",
        "model.norm.weight is [31], expected [32]",
        "model.rotary.weight is no tensor of the base",
        "model.norm is no linear layer",
        "holds int64",
    ):
        assert any(part in fault for fault in caught.value.faults)
    assert "8 tensors do not fit" in str(caught.value) and str(caught.value).endswith(
        "; and 3 more (all with --verbose)"
    )
    whole = {f"{MODULES[0]}.lora_A.weight": values(5, 32), f"{MODULES[0]}.lora_B.weight": values(31, 4)}
    with pytest.raises(SparkError, match=r"A is \[5, 32\], expected \[4, 32\]; .*B is \[31, 4\], expected \[32, 4\]"):
        merge(tensors, CONFIG, write(tmp_path / "shapes", [], tensors, whole))
    whole = {f"{MODULES[0]}.lora_A.weight": values(4, 32) * np.nan, f"{MODULES[0]}.lora_B.weight": values(32, 4)}
    with pytest.raises(SparkError, match="values are not finite: base_model.model.model.layers.0.self_attn.q_proj"):
        merge(tensors, CONFIG, write(tmp_path / "values", [], tensors, whole))


def test_unreadable_files(tmp_path):
    with pytest.raises(SparkError, match="adapter_config.json: cannot be read .* expected a PEFT adapter"):
        merge(base(), CONFIG, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(SparkError, match="adapter_config.json: not valid JSON"):
        merge(base(), CONFIG, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(SparkError, match="no adapter's weights; expected adapter_model.safetensors or adapter"):
        merge(base(), CONFIG, tmp_path)


@pytest.mark.parametrize("kind", ["patterns", "rslora", "fan_in_fan_out", "embeddings", "head", "saved", "qwen3"])
def test_peft_computes_the_same_model(tmp_path, kind):
    """Against the adapted, unmerged model of the peft library: logits."""
    torch = pytest.importorskip("torch", reason="torch is in the extra parity only")
    peft = pytest.importorskip("peft", reason="peft is needed as the reference")
    from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM
    from transformers.models.qwen2 import Qwen2Config as TheirConfig
    from transformers.models.qwen3 import Qwen3Config

    sizes = {
        name: getattr(CONFIG, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
        )
    }
    torch.manual_seed(0)
    if kind == "qwen3":
        cls, theirs = Qwen3ForCausalLM, Qwen3Config(**sizes, head_dim=8, tie_word_embeddings=True)
    else:
        cls, theirs = Qwen2ForCausalLM, TheirConfig(**sizes, tie_word_embeddings=True)
    model = cls(theirs)
    tensors = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items() if name != f"{HEAD}.weight"}
    everywhere = [name.rpartition(".")[2] for name in LINEAR]
    settings = {"r": 4, "lora_alpha": 8, "target_modules": everywhere} | {
        "patterns": {"rank_pattern": {"layers.1.mlp.up_proj": 8}, "alpha_pattern": {"q_proj": 3}},
        "rslora": {"use_rslora": True},
        "fan_in_fan_out": {"fan_in_fan_out": True},
        "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
        "head": {"target_modules": ["lm_head", "q_proj"]},
        "saved": {"modules_to_save": ["embed_tokens"]},
        "qwen3": {},
    }[kind]
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(tmp_path / "lora")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (2, 20)))
    with torch.no_grad():
        expected = adapted.eval()(ids).logits.numpy()
    config = CONFIG if kind != "qwen3" else dataclasses.replace(CONFIG, attention_bias=False, qk_norm=True)
    source = {name: SourceTensor(a.shape, a.dtype, lambda a=a: a) for name, a in tensors.items()}
    merged, config = merge(source, config, tmp_path / "lora")
    again = cls(type(theirs)(**theirs.to_dict() | {"tie_word_embeddings": config.tie_word_embeddings}))
    state = {name: torch.from_numpy(np.array(tensor.read())) for name, tensor in merged.items()}
    missing = again.load_state_dict(state, strict=False).missing_keys
    assert missing == ([f"{HEAD}.weight"] if config.tie_word_embeddings else [])
    with torch.no_grad():
        found = again.eval()(ids).logits.numpy()
        plain = cls(theirs)
        plain.load_state_dict({name: torch.from_numpy(a) for name, a in tensors.items()}, strict=False)
        unadapted = plain.eval()(ids).logits.numpy()
    scale = np.abs(expected).max()
    print(
        f"{kind}: merged differs by {np.abs(found - expected).max() / scale:.1e}, "
        f"unadapted by {np.abs(unadapted - expected).max() / scale:.1e}"
    )
    assert np.abs(found - expected).max() < 1e-5 * scale
    assert np.abs(unadapted - expected).max() > 1e-2 * scale
