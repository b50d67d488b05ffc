"""Makes the decoder goldens tests/assets/{qwen3,qwen2_untied} with PyTorch: random weights, transformers' own classes.

    pip install -e ".[parity]" && python tools/make_goldens.py tests/assets

A folder gets config.json and model.safetensors as transformers writes them, and golden.safetensors:

    in/input_ids [2, 11]; logits; hs0 (embedding), hs1, hs2 (after the final norm)
    greedy/new_ids [12], greedy/logits: row 0 continued, without an end token
    train/labels (-100: ignored), train/loss (shifted mean cross-entropy), train/grad/NAME for all but layer 1

and adamw.safetensors, five updates by torch.optim.AdamW of the recipe's kind (see ADAMW):

    input_ids, labels [5, 2, 11]; loss, grad_norm (before clipping), learning_rate [5]; param/NAME after them
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

SIZES = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODELS = {
    # Qwen3's heads are not hidden_size / num_attention_heads wide: 8 here, where that is 6.
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True, attention_bias=False),
    "qwen2_untied": transformers.Qwen2Config(**SIZES, tie_word_embeddings=False),
}
NEW_TOKENS = 12
# Weight decay larger than the recipe's, so that leaving it out of the wrong parameters shows within five updates.
ADAMW = {"peak": 1e-3, "warmup": 2, "betas": (0.9, 0.96), "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
UPDATES = 5


def random_model(config: transformers.PretrainedConfig, generator: torch.Generator) -> torch.nn.Module:
    """Makes a model whose weights, gains and biases are all of about unit size: nothing can hide in a default."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            value = 0.3 * noise + (0.0 if name.endswith("bias") else 1.0)
        else:
            value = noise / parameter.shape[1] ** 0.5
        parameter.data.copy_(value)
    return model.eval()


def golden(model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Computes what the tests compare: hidden states, logits, tokens, the loss and its gradients."""
    ids = torch.randint(0, model.config.vocab_size, (2, 11), generator=generator)
    with torch.no_grad():
        outputs = model(ids, output_hidden_states=True)
        continued, rows = ids[:1], []
        for _ in range(NEW_TOKENS):
            rows.append(model(continued).logits[0, -1])
            continued = torch.cat([continued, rows[-1].argmax()[None, None]], dim=1)
    labels = ids.clone()
    labels[0, :4] = -100
    loss = model(ids, labels=labels).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if ".layers.1." not in name}
    return {
        "in/input_ids": ids.int(),
        "logits": outputs.logits,
        **{f"hs{index}": state for index, state in enumerate(outputs.hidden_states)},
        "greedy/new_ids": continued[0, ids.shape[1] :].int(),
        "greedy/logits": torch.stack(rows),
        "train/labels": labels.int(),
        "train/loss": loss.detach(),
        **{f"train/grad/{name}": gradient for name, gradient in gradients.items()},
    }


def adamw(model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Trains the model in place: warm-up, inverse square root, clipping, decay of matrices only."""
    ids = torch.randint(0, model.config.vocab_size, (UPDATES, 2, 11), generator=generator)
    labels = ids.clone()
    labels[:, 0, :4] = -100  # rows count by their tokens, not alike
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": ADAMW["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=ADAMW["betas"], eps=ADAMW["eps"])
    losses, norms, rates = [], [], []
    for step in range(UPDATES):
        warm = ADAMW["warmup"]
        rates.append(ADAMW["peak"] * ((step + 1) / warm if step < warm else (warm / step) ** 0.5))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        optimizer.zero_grad()
        loss = model(ids[step], labels=labels[step]).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW["clip"]))
        losses.append(loss.detach())
        optimizer.step()
    return {
        "input_ids": ids.int(),
        "labels": labels.int(),
        "loss": torch.stack(losses),
        "grad_norm": torch.stack(norms),
        "learning_rate": torch.tensor(rates),
        **{f"param/{name}": parameter.detach() for name, parameter in model.named_parameters()},
    }


def main(assets: Path) -> None:
    """Writes every model and its golden values."""
    for seed, (name, config) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(600 + seed)
        model = random_model(config, generator)
        model.save_pretrained(assets / name)
        (assets / name / "generation_config.json").unlink(missing_ok=True)
        tensors = {key: value.contiguous() for key, value in golden(model, generator).items()}
        save_file(tensors, assets / name / "golden.safetensors")
        model.zero_grad()
        save_file({k: v.contiguous() for k, v in adamw(model, generator).items()}, assets / name / "adamw.safetensors")
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        print(name, json.dumps(versions), sum(path.stat().st_size for path in (assets / name).iterdir()), "bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
