import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from helpers.event_files import read_values

from spark_jax.errors import SparkError
from spark_jax.model_directory.directory import read_config
from spark_jax.shared.files import write_text
from spark_jax.training import loop


def losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["group"] == "train"]


def test_resume_after_a_crash_equals_an_uninterrupted_run(toy, tmp_path):
    expected = toy(tmp_path / "whole", 20).run()

    def crash(step):
        if step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "broken", 20, step_hook=crash).run()
    assert [step for step, _ in losses(tmp_path / "broken")] == list(range(1, 13))  # the 13th is not settled
    resumed = toy(tmp_path / "broken", 20).run()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "whole")] == list(range(1, 21))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(expected))


def test_sigterm_saves_and_the_run_goes_on(toy, tmp_path):
    toy(tmp_path / "whole", 12).run()

    def terminate(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    state = toy(tmp_path / "stopped", 12, step_hook=terminate, checkpoint_every=1000).run()
    assert int(state.step) == 7
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    toy(tmp_path / "stopped", 12, checkpoint_every=1000).run()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_counts_stand_in_every_line_and_at_the_end_of_a_stopped_run(toy, tmp_path):
    counted = []

    def counts():
        counted.append(None)
        return {"skipped_records": len(counted)}

    def terminate(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    toy(tmp_path, 12, step_hook=terminate, log_every=3).run(counts=counts)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["group"], line["skipped_records"]) for line in lines]
    assert found == [(3, "train", 1), (6, "train", 2), (7, "run", 3)]


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(toy, tmp_path):
    seen = []

    def poison(x):
        seen.append(None)
        if len(seen) % 4 == 0:
            x[0, 0] = np.nan

    state = toy(tmp_path, 8, load_hook=poison).run()
    assert int(state.skipped) == 2 and int(state.step) == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))
    updates = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == np.int32]
    assert {int(count) for count in updates} == {6}


def test_what_is_not_finite_stays_out_of_the_means(toy, tmp_path):
    seen = []

    def poison(x):
        seen.append(None)
        if len(seen) == 2:
            x[0, 0] = np.nan

    validation = lambda state: {"loss": np.nan, "other": 1.0}  # noqa: E731
    toy(tmp_path, 4, load_hook=poison, log_every=4, evaluate_every=4).run(validation)
    train, evaluated, _ = (
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    )
    assert np.isfinite(train["loss"]) and train["skipped"] == 0.25 and train["skipped_total"] == 1
    assert evaluated["loss"] is None and evaluated["other"] == 1.0


@pytest.mark.parametrize("where", ["data", "evaluation"])
def test_an_error_costs_no_step(toy, tmp_path, capsys, where):
    expected = toy(tmp_path / "whole", 12, checkpoint_every=1000).run()
    calls = []

    def fail(*_):
        calls.append(None)
        if len(calls) == (9 if where == "data" else 1):
            raise SparkError("no such luck")

    def evaluate(state):
        fail()
        return {"loss": 1.0}

    hooks = {"load_hook": fail} if where == "data" else {"evaluate_every": 8}
    with pytest.raises(SparkError, match="no such luck"):
        toy(tmp_path / "broken", 12, checkpoint_every=1000, **hooks).run(evaluate if where == "evaluation" else None)
    assert os.listdir(tmp_path / "broken" / "checkpoints") == ["8"]
    assert "step 8: saved, for there was an error" in capsys.readouterr().err
    resumed = toy(tmp_path / "broken", 12, checkpoint_every=1000).run()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(expected))


def test_rhythm_of_evaluation_checkpoints_and_lines(toy, tmp_path):
    evaluated = []

    def evaluate(state):
        evaluated.append(int(state.step))
        return {"loss": 1.0}

    toy(tmp_path, 12, log_every=4, evaluate_every=5, checkpoint_every=3, keep_checkpoints=2).run(evaluate)
    assert evaluated == [5, 10, 12]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["12", "9"]
    assert [step for step, _ in losses(tmp_path)] == [4, 8, 12]


def test_updates_left_out_are_told_and_a_run_of_them_ends_with_the_state_saved(toy, tmp_path, capsys):
    batches = []

    def poison(x):
        batches.append(None)
        if len(batches) in (2, 4) or len(batches) > 5:
            x[0, 0] = np.nan

    # The ninth step is under way when the eighth is seen to be the third in a row.
    with pytest.raises(SparkError, match=r"not finite in 4 steps in a row up to step 9 \(loop.max_skipped is 3\)"):
        toy(tmp_path, 20, load_hook=poison, max_skipped=3).run()
    log = capsys.readouterr().err
    assert "step 2: loss or gradient is not finite, update left out (1 in a row, 1 in all)" in log
    assert "step 8: loss or gradient is not finite, update left out (3 in a row, 5 in all)" in log
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["5", "9"]
    state = toy(tmp_path, 10).run()  # goes on behind the batches that broke it
    assert int(state.skipped) == 6 and int(state.step) == 10


@pytest.mark.extended
def test_the_best_parts_and_checkpoints_stay(toy, tmp_path):
    losses = {5: 3.0, 10: 1.0, 15: 2.0, 20: 4.0}
    part = tmp_path / "params" / "part"
    part.mkdir(parents=True)

    def evaluate(state):
        write_text(part / "step", str(int(state.step)))
        return {"loss": losses[int(state.step)]}

    toy(tmp_path, 20, evaluate_every=5, checkpoint_every=4, keep_checkpoints=1, keep_best=1).run(evaluate)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "20"]  # of no step that checkpoint_every names
    stored = [(folder / "params" / "part" / "step").read_text() for folder in (tmp_path, tmp_path / "best")]
    assert stored == ["20", "10"] and read_config(tmp_path / "best") == read_config(tmp_path)
    losses[25] = 0.5
    toy(tmp_path, 25, evaluate_every=5, keep_checkpoints=1, keep_best=1).run(evaluate)
    assert os.listdir(tmp_path / "checkpoints") == ["25"]
    assert (tmp_path / "best" / "params" / "part" / "step").read_text() == "25"
    with pytest.raises(SparkError, match="loop.best_metric is 'mel', expected one of loss"):
        toy(tmp_path, 30, evaluate_every=5, keep_best=1, best_metric="mel").run(lambda state: {"loss": 1.0})


def test_where_the_time_goes(toy, tmp_path):
    """Waiting for data, evaluation and the rest, a step and in all; learning rate and utilization beside the losses."""
    slow = lambda x: time.sleep(0.05)  # noqa: E731

    def evaluate(state):
        time.sleep(0.3)
        return {"loss": 1.0}

    run = toy(tmp_path, 8, load_hook=slow, log_every=4, evaluate_every=4, checkpoint_every=4)
    run.run(
        evaluate,
        schedules={"learning_rate": lambda count: 10.0 * count},
        peak_flops=1e9,
        step_flops=lambda means: 3e9 * means["grad_norm"],
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["group"] == "train"]
    assert [line["learning_rate"] for line in train] == [30.0, 70.0]  # of updates 3 and 7, counted from 0
    assert train[0]["evaluation_seconds"] == 0 and train[1]["evaluation_seconds"] >= 0.3
    assert train[1]["checkpoint_seconds"] > 0
    for line in train:
        assert line["step_seconds"] == pytest.approx(line["data_wait_seconds"] + line["compute_seconds"])
        assert line["mfu"] == pytest.approx(
            3e9 * line["grad_norm"] / (line["step_seconds"] * 4 * 1e9)  # the toy's mesh has four devices
        )
    total = lines[-1]
    assert total["group"] == "run" and total["steps"] == 8 and total["evaluation_seconds"] >= 0.6
    spent = sum(total[f"{name}_seconds"] for name in ("compute", "data_wait", "evaluation", "checkpoint"))
    assert spent == pytest.approx(total["seconds"])


def test_tensorboard_has_what_the_lines_have(toy, tmp_path):
    toy(tmp_path, 6, log_every=2, evaluate_every=3).run(lambda state: {"loss": float(state.step)})
    values = read_values(tmp_path / "tensorboard")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = {
        (f"{line['group']}/{name}", line["step"]): value
        for line in lines
        for name, value in line.items()
        if name not in ("group", "step")
    }
    assert values.keys() == expected.keys()
    for place, value in expected.items():
        assert values[place].simple_value == np.float32(value), place
    assert {(tag, step) for tag, step in values if tag.endswith("/loss")} == {
        ("train/loss", 2),
        ("train/loss", 4),
        ("train/loss", 6),
        ("validation/loss", 3),
        ("validation/loss", 6),
    }
    assert values["validation/loss", 3].simple_value == 3.0


def test_of_several_processes_the_first_writes_metrics(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.distributed, "is_primary", lambda: False)
    toy(tmp_path, 2).run(lambda state: {"loss": 1.0})
    assert os.listdir(tmp_path) == ["checkpoints"]


def test_a_profile_of_some_steps(toy, tmp_path, capsys):
    toy(tmp_path, 6, profile=(2, 4)).run()
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000
    assert f"profile of steps 2 to 3: {tmp_path / 'profile'}" in capsys.readouterr().err
    with pytest.raises(SparkError, match=r"loop.profile is \[4, 4\]"):
        toy(tmp_path, 8, profile=(4, 4)).run()


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(toy, tmp_path, capsys):
    toy(tmp_path / "whole", 20).run()
    toy(tmp_path / "damaged", 10).run()
    for path in (tmp_path / "damaged" / "checkpoints" / "10").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    toy(tmp_path / "damaged", 20).run()
    assert "10: damaged checkpoint" in capsys.readouterr().err
    assert losses(tmp_path / "damaged") == losses(tmp_path / "whole")
