import pytest

from spark_jax.training import clock


def test_each_second_is_counted_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    watch = clock.Clock()

    def step(wait, compute):
        with watch.spent("data_wait"):
            now[0] += wait
        now[0] += compute
        watch.count()

    step(1.0, 3.0)
    step(2.0, 4.0)
    with watch.spent("evaluation"):
        now[0] += 7.0

    def interrupted():
        with watch.spent("checkpoint"):
            now[0] += 5.0
            raise KeyError("interrupted")

    with pytest.raises(KeyError, match="interrupted"):
        interrupted()
    assert watch.take() == {
        "step_seconds": 5.0,
        "data_wait_seconds": 1.5,
        "compute_seconds": 3.5,
        "checkpoint_seconds": 5.0,
        "evaluation_seconds": 7.0,
        "window_seconds": 10.0,
    }
    step(0.5, 0.5)
    assert watch.take()["step_seconds"] == 1.0
    assert watch.totals() == {
        "steps": 3,
        "seconds": 23.0,
        "compute_seconds": 7.5,
        "data_wait_seconds": 3.5,
        "checkpoint_seconds": 5.0,
        "evaluation_seconds": 7.0,
    }
