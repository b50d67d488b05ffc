"""The benchmark of inference: what is printed and written, what is refused, and at tiny sizes every section."""

import inspect
import json

import benchmark_inference
import heard
import numpy as np
import pytest
from heard import Heard
from helpers.tiny_config import tiny
from inference_report import Report, row
from inference_timing import Measurement, Peak, Times, alternate

from spark_jax.errors import SparkError

TINY = {"rounds": 1, "seconds": 0.5, "texts": 3, "batch_slots": 2, "block": 2, "capacity": 256, "slots": "2"}
TINY |= {"prompts": "2", "context": 100, "streams": "2", "parts": "12"}


OURS, THEIRS = Times((0.5, 0.4, 0.8), (1.0, 0.8, 1.6)), Times((1.0, 1.1, 0.9), (4.0, 4.4, 3.6))


def options(**changed):
    parameters = inspect.signature(benchmark_inference.inference).parameters
    return {name: parameter.default for name, parameter in parameters.items()} | changed


def test_a_measurement_is_printed_and_written(tmp_path, capsys):
    report = Report({"dtype": "float32"}, tmp_path / "found.json")
    found = Measurement("decode", "8 slots", "tokens", 64.0, OURS, THEIRS, 2e9, 4e12, 0.1)
    report.add(found)
    report.add_streams(2, [[Heard(0.1, 0.0, 2.0, 1.0), Heard(0.3, 0.06, 4.0, 2.0)]])
    report.fail("encode", "no memory")
    printed = capsys.readouterr()
    assert (
        "| decode | 8 slots | 128 tokens | 0.5 (0.4–0.8) | 4 | 8 | 640 tokens | 20% | 1 (0.9–1.1) | 2.00 |"
        in printed.out
    )
    assert "<!-- PyTorch's processor time over ours 4.00 -->" in printed.out
    assert "| 2 | 0.200 | 0.300 | 0.060 | 1 of 2 | 3.0 |" in printed.out
    assert "encode: no memory" in printed.err
    written = json.loads((tmp_path / "found.json").read_text())
    [own] = written["measurements"]
    assert own["rate"] == 128
    assert own["ratio"] == 2
    assert written["streams"]["2"]["late streams"] == 1
    assert written["failures"] == {"encode": "no memory"}


def test_what_is_not_known_is_not_printed():
    line = row(Measurement("batch", "3 texts", "audio s", 30.0, Times((2.0,), (3.0,))))
    assert line == "| batch | 3 texts | 15 audio s | 2 (2–2) | – | – | – | – | – | – |"


def test_the_roofline_is_the_slower_of_both():
    peak = Peak(bandwidth=100.0, flops=1000.0, source="")
    assert peak.at_best(200.0, 1000.0) == 2
    assert peak.at_best(None, 5000.0) == 5
    assert peak.at_best(None, None) is None


def test_sides_take_turns_and_a_round_has_many_quick_runs():
    calls = []
    times = alternate({name: lambda count, name=name: calls.append((name, count)) for name in "ab"}, rounds=2, most=7)
    assert calls == [("a", 1), ("a", 1), ("b", 1), ("b", 1), ("a", 7), ("b", 7), ("a", 7), ("b", 7)]
    assert [len(own.wall) for own in times.values()] == [2, 2]


def test_the_speed_of_streams_is_that_of_the_last():
    assert heard.speed([[Heard(0.1, 0.0, 2.0, 1.0), Heard(0.1, 0.0, 2.0, 4.0)]]) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"only": "decode,speak"}, "--only has 'speak'"),
        ({"dtype": "float16"}, "--dtype has 'float16'"),
        ({"vocoder_dtype": "int8"}, "--vocoder-dtype has 'int8'"),
        ({"slots": "1,none"}, "--slots is '1,none'"),
        ({"vocoder_rows": "0"}, "--vocoder-rows is '0'"),
    ],
)
def test_options_that_are_refused(changed, said):
    with pytest.raises(SparkError, match=said):
        benchmark_inference.measure(options(**changed), tiny())


@pytest.mark.extended
def test_every_section(tmp_path, capsys):
    chosen = {"only": "decode,prefill,vocode,batch,streams", "vocoder_dtype": "float32,bfloat16", "torch": False}
    written = options(**TINY, **chosen, output=tmp_path / "found.json")
    assert benchmark_inference.measure(written, tiny())
    content = json.loads((tmp_path / "found.json").read_text())
    found = {(own["section"], own["sizes"]): own for own in content["measurements"]}
    assert [section for section, _ in found] == ["decode", "prefill", "vocode", "vocode", "batch"]
    assert all(own["median"] > 0 and own["rate"] > 0 for own in found.values())
    assert found["batch", "3 texts, 2 slots, float32"]["more"]["programs compiled in the rounds"] == 0
    assert 10 < found["vocode", "1 × 64 tokens, bfloat16"]["more"]["signal to noise, dB"] < 80
    assert (
        found["decode", "2 slots, 128 tokens read, float32"]["moved"]
        > found["prefill", "2 × 96 tokens, float32"]["moved"]
    )
    assert len(content["streams"]["2"]["rounds"][0]) == 2
    assert "Without PyTorch" in capsys.readouterr().out


@pytest.mark.extended
def test_one_section_that_fails_does_not_stop_the_others(tmp_path):
    chosen = TINY | {"only": "decode,prefill", "torch": False, "context": 255, "output": tmp_path / "found.json"}
    assert not benchmark_inference.measure(options(**chosen), tiny())
    content = json.loads((tmp_path / "found.json").read_text())
    assert "too few" in content["failures"]["decode"]
    assert [own["section"] for own in content["measurements"]] == ["prefill"]


@pytest.mark.extended
def test_pytorch_chooses_the_same_tokens(tmp_path):
    pytest.importorskip("torch")
    chosen = TINY | {"only": "decode,prefill", "output": tmp_path / "found.json"}
    assert benchmark_inference.measure(options(**chosen), tiny())
    for own in json.loads((tmp_path / "found.json").read_text())["measurements"]:
        assert own["more"]["equal tokens"] == 1
        assert np.isfinite(own["ratio"])
