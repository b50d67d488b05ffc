import json
import os
import signal

import jax
import numpy as np
import pytest


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


def test_rhythm_of_evaluation_checkpoints_and_lines(toy, tmp_path):
    evaluated = []

    def evaluate(state):
        evaluated.append(int(state.step))
        return {"loss": 1.0}

    toy(tmp_path, 12, log_every=4, evaluate_every=5, checkpoint_every=3, keep_checkpoints=2).run(evaluate)
    assert evaluated == [5, 10, 12]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["12", "9"]
    assert [step for step, _ in losses(tmp_path)] == [4, 8, 12]
