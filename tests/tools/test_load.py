"""The load tool: what a listener hears is reckoned from when the bytes came; a short run on a server."""

import json

import load
import numpy as np
import pytest
from helpers import live_server
from helpers.fake_tts import FakeTTS

from spark_jax.serve.app import create_app


def test_underruns_and_first_sound():
    steady = load.Answer(200, [(0.2 + 0.1 * number, 1600) for number in range(10)], first_sound=2000, ended=1.1)
    assert steady.underruns(0.05) == 0
    assert steady.seconds == pytest.approx(1.0)
    assert steady.audible == pytest.approx(0.2 + 2000 / 16_000)
    late = load.Answer(200, [(0.2, 1600), (0.37, 1600), (0.6, 1600)], first_sound=1700)
    assert late.underruns(0.05) == 2
    assert late.underruns(0.1) == 1
    assert late.underruns(0.25) == 0
    assert late.audible == pytest.approx(0.37)
    assert load.Answer(200, [(0.1, 5)]).audible is None


def test_a_run(tmp_path):
    model = FakeTTS()
    model.pace = 0.005
    with live_server.running(create_app(model, model="tiny")) as url:
        rows = load.measure(url, [40.0], 0.5, 0.1, voice="female", max_seconds=0.5)
        refused = load.measure(url, [40.0], 0.2, 0.1, voice="nobody")
    [row] = rows
    assert row["requests"] == row["answered"] > 5
    assert row["failed"] == row["refused"] == 0
    assert 0 < row["first_byte_50"] <= row["first_audible_95"]
    assert row["audio_seconds_a_second"] > 1
    assert refused[0]["failed"] == refused[0]["requests"]
    assert np.isnan(refused[0]["first_byte_50"])
    load.write(rows, tmp_path / "numbers.json", None)
    assert json.loads((tmp_path / "numbers.json").read_text()) == rows
    assert "| 40 |" in load.table(rows)
