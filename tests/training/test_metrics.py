import json

import numpy as np

from spark_jax.training.metrics import MetricsWriter, Window, edit_distance


def slow_edit_distance(a, b):
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            swap = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, swap)
    return table[-1][-1]


def test_edit_distance():
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = (rng.integers(0, 4, rng.integers(0, 12)) for _ in range(2))
        assert edit_distance(a, b) == slow_edit_distance(a.tolist(), b.tolist())


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "gro')
    writer = MetricsWriter(tmp_path, resume_step=2)
    writer.write(3, "train", {"loss": 30.0})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_window_means_are_over_the_steps_that_report():
    window = Window()
    window.add({"loss": np.float32(1), "rare": np.float32(5)})
    window.add({"loss": np.float32(3)})
    assert window.take() == ({"loss": 2.0, "rare": 5.0}, {"loss": 4.0, "rare": 5.0})
    assert window.take() == ({}, {})


def test_window_means_of_target_tokens_are_over_the_tokens():
    window = Window()
    window.add({"loss": 1.0, "targets": 30.0, "loss_tts": 4.0, "targets_tts": 10.0, "accuracy_top10_tts": 0.5})
    window.add({"loss": 2.0, "targets": 10.0, "loss_tts": 0.0, "targets_tts": 0.0, "accuracy_top10_tts": 0.0})
    means, _ = window.take()
    expected = {"loss": 1.25, "targets": 20.0, "loss_tts": 4.0, "targets_tts": 5.0, "accuracy_top10_tts": 0.5}
    assert means == expected
    window.add({"loss_tts": 0.0, "targets_tts": 0.0})
    assert window.take()[0] == {"targets_tts": 0.0}
