"""What `spark-jax train` and the files in train/ hand on; the trainings themselves are tested in tests/training."""

import subprocess
import sys
from pathlib import Path

import pytest

from spark_jax.cli import main as cli
from spark_jax.cli.train import Training
from spark_jax.training import launch
from spark_jax.training.catalog import TRAININGS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launched(monkeypatch):
    """Runs a command whose training is not started. Gives what `launch` was called with."""
    calls = []
    monkeypatch.setattr(launch, "launch", lambda *arguments, **options: calls.append((arguments, options)))

    def launched(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *arguments])
        assert not ended.value.code
        return calls.pop()

    return launched


def test_the_command_knows_all_trainings():
    assert {kind.value for kind in Training} == set(TRAININGS)


def test_what_is_not_given_is_left_to_the_training(launched):
    assert launched("llm", "tiny_llm", "-o", "run") == (("llm", "tiny_llm", Path("run"), []), {})


def test_everything_is_handed_on(launched):
    several = ("--coordinator", "host:1", "--num-processes", "4", "--process-id", "0", "--heartbeat", "9")
    changes = ("--set", "loop.steps=3", "--set", "mesh.fsdp=2", "--profile", "1:3")
    arguments, options = launched("codec", "tiny_bicodec.yaml", "--output", "run", *changes, *several)
    overrides = ["loop.steps=3", "mesh.fsdp=2", "loop.profile=[1, 3]"]
    assert arguments == ("codec", "tiny_bicodec.yaml", Path("run"), overrides)
    assert options == {"coordinator": "host:1", "num_processes": 4, "process_id": 0, "heartbeat": 9}


@pytest.mark.parametrize(("program", "kind"), [("llm", "llm"), ("bicodec", "codec"), ("wav2vec2", "ctc")])
def test_the_files_in_train_call_the_command(program, kind):
    process = subprocess.run(
        [sys.executable, ROOT / "train" / f"{program}.py", "tiny_lm", "--output", "run"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 2 and process.stderr.startswith("error: tiny_lm: cannot be read")
    assert f"`spark-jax train {kind} CONFIG" in (ROOT / "train" / f"{program}.py").read_text()
