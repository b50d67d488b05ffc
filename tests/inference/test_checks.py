"""What is wrong with speech is found, by its name; what is right is left alone."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import tiny_model

from spark_jax.inference import checks

RATE, HOP = 16_000, 320
TEXT = "The children played in the water all day."  # 10 syllables


def speech(seconds: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A buzz of natural level and tokens that do not come again."""
    samples = tiny_model.speech(seconds, seed).astype(np.float32)
    return samples, np.random.default_rng(seed).integers(0, 8192, len(samples) // HOP)


def found(text: str, samples: np.ndarray, ids: np.ndarray, **options) -> list[str]:
    findings = checks.check_speech(text, samples, RATE, ids, **options)
    for finding in findings:
        assert finding.name in checks.NAMES and "\n" not in finding.message
        assert np.isfinite(finding.value) and np.isfinite(finding.limit)
    return [finding.name for finding in findings]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(TEXT, 1.2), (TEXT, 2.2), (TEXT, 5.0), ("今天天气很好，我们去公园。", 2.5), ("Hi.", 0.3), ("!", 9.0)],
)
def test_speech_as_it_should_be(text, seconds):
    assert found(text, *speech(seconds)) == []


@pytest.mark.parametrize(
    ("text", "seconds", "expected"),
    [
        (TEXT, 0.16, ["too_short"]),
        (TEXT, 0.8, ["too_short"]),
        (TEXT, 6.1, ["too_long"]),
        (TEXT, 60.0, ["too_long"]),
        ("今天天气很好，我们去公园。", 0.9, ["too_short"]),
        ("今天天气很好，我们去公园。", 6.6, ["too_long"]),
    ],
)
def test_lengths_that_do_not_fit_the_text(text, seconds, expected):
    assert found(text, *speech(seconds)) == expected
    assert found(text, *speech(seconds), reached_limit=True) == ["no_end"]


def test_a_rate_that_was_asked_for():
    assert found(TEXT, *speech(9.0), syllables_per_second=2.0) == []
    assert found(TEXT, *speech(9.0), syllables_per_second=5.0) == ["too_long"]
    assert found(TEXT, *speech(0.8), syllables_per_second=10.0) == []


def test_silence_and_near_silence():
    samples, ids = speech(2.0)
    assert found(TEXT, samples * 0, ids) == ["silent", "too_short"]
    assert found(TEXT, samples * 0 + 0.5, ids) == ["silent", "too_short"]  # what is constant is not heard
    assert found(TEXT, samples * 0.01, ids) == ["silent"]
    assert found(TEXT, samples[:2560] * 0.005, ids[:8]) == ["silent", "too_short"]  # as after a wrong transcript
    assert found(TEXT, samples[:0], ids[:0]) == ["too_short"]


@pytest.mark.parametrize("where", [0, 50, 100])
def test_a_hole(where):
    samples, ids = speech(2.0)

    def holed(seconds):
        tokens = round(seconds * 50)
        more = np.random.default_rng(1).integers(0, 8192, tokens)
        return np.insert(samples, where * HOP, np.zeros(tokens * HOP)), np.insert(ids, where, more)

    assert found(TEXT, *holed(1.9)) == []
    [finding] = checks.check_speech(TEXT, *[holed(2.4)[0], RATE, holed(2.4)[1]])
    assert finding.name == "pause" and finding.value == pytest.approx(2.4, abs=0.05)
    assert finding.message == f"the speech is silent for {finding.value:.1f} s, expected 2 or less"


def test_transcripts_that_a_recording_can_and_cannot_say():
    samples, _ = speech(2.2)
    for transcript in (TEXT, "It is 5 p.m.", f"{TEXT} It was hot.", "…", "今天天气很好。"):
        assert checks.check_transcript(transcript, samples, RATE) == ""
    assert checks.check_transcript(TEXT * 3, samples, RATE).startswith(
        "2.20 s of sound for about 30 syllables, expected"
    )
    assert "expected 0.18 to 2.0 s" in checks.check_transcript("Hello.", samples, RATE)
    assert checks.check_transcript(TEXT, samples[:0], RATE) and checks.check_transcript(TEXT, samples * 0, RATE)
    # Silence around the sound is none of it.
    padded = np.concatenate([0 * samples, samples, 0 * samples])
    assert checks.check_transcript(TEXT, padded, RATE) == ""


@pytest.mark.parametrize("cycle", [1, 2, 3, 7, 25, 50])
def test_circles(cycle):
    """Found from three turns of more than a second on, wherever they are; not before."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        turns = max(4, -(-51 // cycle) + 1)
        samples, ids = speech(turns * cycle / 50 + 1.0)
        start = int(rng.integers(0, len(ids) - turns * cycle))
        once = rng.permutation(8192)[:cycle]
        ids[start : start + turns * cycle] = np.tile(once, turns)
        findings = {finding.name: finding for finding in checks.check_speech("!", samples, RATE, ids)}
        assert set(findings) == {"loop"}
        assert findings["loop"].value == pytest.approx((turns - 1) * cycle * 0.02, abs=0.05)
        assert f"the same {'token' if cycle == 1 else f'cycle of {cycle} tokens'} for" in findings["loop"].message
        ids[start : start + turns * cycle : max(1, min(2 * cycle, 40))] = rng.permutation(8192)[
            : -(-turns * cycle // max(1, min(2 * cycle, 40)))
        ]
        assert found("!", samples, ids) == []


def test_anything_can_be_looked_at():
    rng = np.random.default_rng(0)
    for _ in range(200):
        length = int(rng.integers(0, 60))
        samples = rng.standard_normal(length * HOP) * 10.0 ** rng.integers(-12, 3)
        text = "".join(map(chr, rng.integers(1, 0xD800, int(rng.integers(0, 30)))))
        ids = rng.integers(0, int(rng.integers(1, 9)), length)
        found(text, samples.astype(np.float32), ids, reached_limit=bool(rng.integers(2)))


def test_no_jax_is_needed():
    code = "import sys, spark_jax.inference.checks; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
