"""The comparison with PyTorch's training: its errors, and where PyTorch is installed a run of it."""

import sys

import benchmark_training
import pytest
import yaml
from helpers.tiny_config import tiny

from spark_jax.config import to_mapping


@pytest.fixture
def config(tmp_path):
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"llm": to_mapping(tiny())["llm"]}))
    run = {"model": str(tmp_path / "model.yaml"), "data": {"row_length": 64, "batch_rows": 8}, "loss_chunk": 64}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return tmp_path / "run.yaml"


def failure(capsys, *arguments, **options):
    with pytest.raises(SystemExit) as exit_:
        benchmark_training.main(*arguments, **options)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_without_pytorch_the_extra_is_named(config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch_training", raising=False)
    assert "spark-jax[parity]" in failure(capsys, config)


def test_the_language_model_beside_pytorch(config, capsys):
    pytest.importorskip("torch")
    benchmark_training.main(config, steps=1, rounds=1)  # raises where the losses differ
    assert "PyTorch's time over ours" in capsys.readouterr().out


def test_what_cannot_be_compared(config, capsys):
    pytest.importorskip("torch")
    assert "expected float32" in failure(capsys, config, overrides=["dtype=bfloat16"])
    assert "--reference is missing" in failure(capsys, "tiny_bicodec")
    assert "adversarial_start is 0" in failure(capsys, "tiny_bicodec", overrides=["adversarial_start=0"])
