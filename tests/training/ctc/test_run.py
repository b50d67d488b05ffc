"""The recognizer's run: stopped and gone on with it is the same, and its folder has both parts."""

import json

import jax
import numpy as np
import pytest
import soundfile
from helpers.stopped_run import read_metrics, whole_and_stopped
from helpers.tiny_config import tiny

from spark_jax.config import to_mapping
from spark_jax.data.config import AudioDataConfig
from spark_jax.model_directory.directory import read_config, read_part
from spark_jax.text.vocabulary import Vocabulary
from spark_jax.training.config import LoopConfig, MeshConfig
from spark_jax.training.ctc.config import CTCTrainingConfig
from spark_jax.training.ctc.run import train
from spark_jax.training.optimizer import OptimizerConfig


@pytest.fixture
def config(tmp_path):
    """Of a run of a small recognizer with a pitch head on noise."""
    rng = np.random.default_rng(0)
    with (tmp_path / "metadata.jsonl").open("w") as lines:
        for i in range(20):
            soundfile.write(tmp_path / f"{i}.flac", rng.uniform(-0.5, 0.5, 3200), 16_000)
            record = {"index": str(i), "split": "train" if i < 16 else "validation", "wav_path": f"{i}.flac"}
            record |= {"duration": 0.2, "text": "ba b"[: 1 + i % 4], "f0_start": 10 * i, "f0_frames": 10}
            lines.write(json.dumps(record) + "\n")
    np.save(tmp_path / "f0.npy", rng.integers(1000, 2000, 200).astype(np.uint16))
    system = to_mapping(tiny())
    front_end = {"conv_dim": [8, 8], "conv_kernel": [240, 2], "conv_stride": [160, 2]}  # few layers to compile
    system["wav2vec2"] |= {"num_hidden_layers": 2, "feature_layers": [1], **front_end}
    (tmp_path / "model.yaml").write_text(json.dumps(system))  # JSON is YAML
    return CTCTrainingConfig(
        corpus=str(tmp_path),
        model=str(tmp_path / "model.yaml"),
        target="text",
        pitch_weight=0.5,
        data=AudioDataConfig(bucket_seconds=(0.2,), batch_seconds=1.6),
        optimizer=OptimizerConfig(warmup_steps=0),
        loop=LoopConfig(steps=4, log_every=1, evaluate_every=2, checkpoint_every=2),
        mesh=MeshConfig(data=1),
    )


def test_stopped_run_resumes_exactly_and_its_folder_is_a_model_directory(config, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    whole_and_stopped(train, config, tmp_path, after=2)
    whole, halves = (read_metrics(tmp_path / name) for name in ("whole", "halves"))
    assert [line["step"] for line in whole if line["group"] == "train"] == [1, 2, 3, 4]
    assert whole == halves
    validation = [line for line in whole if line["group"] == "validation"]
    assert all(0 <= line["voicing_accuracy"] <= 1 and line["f0_r2"] < 1 for line in validation)
    for line in whole:
        if line["group"] == "train":
            total = line["labels"] + 0.5 * (line["f0"] + line["voicing"])
            assert line["loss"] == pytest.approx(total, rel=1e-5)
    recognizer, extractor = (read_part(tmp_path / "halves", part)["params"] for part in ("recognizer", "wav2vec2"))
    theirs = read_part(tmp_path / "whole", "recognizer")["params"]
    jax.tree.map(np.testing.assert_array_equal, recognizer, theirs)
    vocabulary = Vocabulary.load(tmp_path / "halves" / "vocabulary.json")
    assert vocabulary.symbols == [" ", "a", "b"]
    assert recognizer["head"]["kernel"].shape[-1] == len(vocabulary)
    assert "pitch_head" not in recognizer  # it serves the training alone
    # The extractor ends at the last tap: one of the two layers.
    layers = [tree["layers"] for tree in (recognizer["wav2vec2"], extractor)]
    jax.tree.map(lambda all_layers, tapped: np.testing.assert_array_equal(all_layers[:1], tapped), *layers)
    assert read_config(tmp_path / "halves").wav2vec2.feature_layers == (1,)
