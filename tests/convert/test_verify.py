"""Ours beside PyTorch: equal for a true conversion, told for a false one. The comparison itself needs no torch."""

import dataclasses
import importlib.util
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import official_layout
from safetensors.numpy import load_file, save_file

from spark_jax.cli import main as cli
from spark_jax.convert import official, verify
from spark_jax.convert.verify import ParityReport, Row, compare
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed: pip install -e '.[parity]'"
)


def test_rows_and_report():
    row = compare("x", np.array([1.0, -4.0]), np.array([1.0, -5.0]))
    assert row == Row("x", 5.0, 1.0) and row.relative == 0.2
    assert compare("zero", np.zeros(2), np.zeros(2)).relative == 0
    assert compare("zero", np.ones(2), np.zeros(2)).relative == 1
    assert compare("nan", np.array([np.nan]), np.array([1.0])).relative == np.inf
    assert compare("nan", np.array([1.0]), np.array([np.nan])).difference == np.inf
    with pytest.raises(SparkError, match=r"x: shape \[2\], PyTorch's is \[3\]"):
        compare("x", np.zeros(2), np.zeros(3))
    wave = compare("wave", np.array([0.5]), np.array([0.50005]), tolerance=1e-4, absolute=True)
    assert wave.passed and not dataclasses.replace(wave, absolute=False, tolerance=1e-5).passed
    assert not dataclasses.replace(wave, difference=2e-4).passed
    close = Row("close", 10.0, 9e-5)
    assert ParityReport((close,), {"ids": ([1, 2], [1, 2])}).passed
    for report in (
        ParityReport((close, row), {}),
        ParityReport((close,), {"ids": ([1, 2], [1, 3])}),
        ParityReport((close,), {"ids": ([1], [1, 3])}),
        ParityReport((Row("nan", float("nan"), float("nan")),), {}),
    ):
        assert not report.passed and str(report).endswith("NOT equal to PyTorch")
    text = str(ParityReport((close, row), {"greedy tokens": ([1, 2], [1, 3])}))
    assert "greedy tokens: 1 of 2 identical" in text and "0.2  above 1e-05" in text and "9e-06\n" in text


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_it_is_told_before_anything_is_converted(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(tmp_path), str(tmp_path / "model"), "--verify"])
    assert stop.value.code == 2
    assert "package 'torch' is not installed" in capsys.readouterr().err and os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "official"
    config = official_layout.tiny()
    wide = dataclasses.replace(config.llm, num_hidden_layers=3)
    official_layout.write(folder, dataclasses.replace(config, llm=wide))
    return folder


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_true_conversion_is_equal(source, tmp_path, dtype):
    official.convert(source, tmp_path / "model", dtype)
    report = verify.verify(source, tmp_path / "model")
    print(report)
    assert report.passed
    assert [row.name for row in report.rows] == [
        *(f"wav2vec2 hidden state {i}" for i in range(17)),
        *(f"llm hidden state {i}" for i in range(4)),
        "llm logits",
    ]
    ours, theirs = report.ids["greedy tokens"]
    assert len(ours) == len(theirs) == verify.NEW_TOKENS and len(set(ours)) > 3


@pytest.mark.gpu(place=3)
@needs_torch
def test_a_true_conversion_is_equal_on_a_gpu(gpu, source, tmp_path):
    official.convert(source, tmp_path / "model", "float32")
    report = verify.verify(source, tmp_path / "model")
    assert report.passed, str(report)


@needs_torch
@pytest.mark.parametrize("wrap", ["_orig_mod.{}", "module._orig_mod.{}", "base_model.model.{}", "deep"])
def test_names_of_wrappers_are_left_out_on_both_sides(source, tmp_path, wrap):
    wrapped = Path(shutil.copytree(source, tmp_path / "wrapped"))

    def name(inner):
        return inner.replace(".", "._fsdp_wrapped_module.") if wrap == "deep" else wrap.format(inner)

    for folder in ("LLM", "wav2vec2-large-xlsr-53"):
        [path] = [path for path in (wrapped / folder).iterdir() if path.suffix in (".safetensors", ".bin")]
        if path.suffix == ".bin":
            import torch

            torch.save({name(key): values for key, values in torch.load(path).items()}, path)
        else:
            save_file({name(key): values for key, values in load_file(path).items()}, path)
    with pytest.warns(UserWarning, match="names of tensors are read without"):
        official.convert(wrapped, tmp_path / "model", parts=("wav2vec2", "llm"))
    report = verify.verify(wrapped, tmp_path / "model")
    assert report.passed, str(report)
    assert all(row.largest > 0 for row in report.rows)


@needs_torch
def test_a_changed_tensor_is_told_from_its_layer_on(source, tmp_path):
    official.convert(source, tmp_path / "model")
    loaded = model_directory.load(tmp_path / "model")
    variables = jax.tree.map(np.array, loaded.variables)
    variables["llm"]["params"]["layers"]["mlp"]["up"]["kernel"][1] *= 1.001
    variables["wav2vec2"]["params"]["layers"]["layer"]["mlp_norm"]["bias"][9] += 0.01
    model_directory.save(tmp_path / "changed", loaded.config, variables, loaded.tokenizer_directory)
    report = verify.verify(source, tmp_path / "changed")
    outside = [row.name for row in report.rows if not row.passed]
    assert outside == [
        *(f"wav2vec2 hidden state {i}" for i in range(10, 17)),
        "llm hidden state 2",
        "llm hidden state 3",
        "llm logits",
    ]
    assert not report.passed


@needs_torch
def test_the_command(source, tmp_path, capsys, monkeypatch):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["convert", str(source), *map(str, arguments), "--verify"])
        return stop.value.code or 0, capsys.readouterr().out

    code, out = run(tmp_path / "model")
    assert code == 0 and "llm logits" in out and out.endswith("equal to PyTorch\n")
    monkeypatch.setattr(verify, "TEXT", "x")
    monkeypatch.setattr(verify.ParityReport, "passed", False)
    code, out = run(tmp_path / "other")
    assert code == 1 and out.endswith("NOT equal to PyTorch\n") and (tmp_path / "other" / "config.json").exists()


@needs_torch
def test_a_source_that_torch_cannot_load(source, tmp_path):
    official.convert(source, tmp_path / "model", parts=("llm",))
    broken = shutil.copytree(source, tmp_path / "broken")
    path = broken / "LLM" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "unheard-of"}))
    with pytest.raises(SparkError, match="LLM: PyTorch cannot load it") as caught:
        verify.verify(broken, tmp_path / "model")
    assert "\n" not in str(caught.value)


@needs_torch
def test_an_adapter_is_merged_on_both_sides(source, tmp_path):
    """By PEFT there, by the conversion here; and without it on one side the difference is seen."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[parity]'")
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(source / "LLM", dtype=torch.float32)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    peft.get_peft_model(base, settings).save_pretrained(tmp_path / "adapter")
    official.convert(source, tmp_path / "model", parts=("llm",), lora=tmp_path / "adapter")
    report = verify.verify(source, tmp_path / "model", lora=tmp_path / "adapter")
    assert report.passed, str(report)
    assert not verify.verify(source, tmp_path / "model").passed
