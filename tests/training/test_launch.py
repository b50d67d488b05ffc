"""What every training does before and around its steps: the output folder's lock and the configuration there."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import pytest

from spark_jax.training import launch
from spark_jax.training.catalog import TRAININGS
from spark_jax.training.config import LoopConfig, MeshConfig


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts a training in this process, with its output in `tmp_path/run`."""
    monkeypatch.setattr(launch.compilation_cache, "enable", lambda: None)

    def start(train, *overrides, output=tmp_path / "run"):
        (tmp_path / "config.yaml").write_text("{}")
        monkeypatch.setitem(TRAININGS, "llm", dataclasses.replace(TRAININGS["llm"], train=train))
        launch.launch("llm", str(tmp_path / "config.yaml"), output, overrides)

    return start


def test_a_folder_has_one_run_at_a_time(start, capsys):
    def second(config, output):
        with pytest.raises(SystemExit) as ended:
            start(lambda *_: pytest.fail("two runs at once"))
        assert ended.value.code == 2

    start(second)
    assert "run: another run is going on in this folder" in capsys.readouterr().err
    ran = []
    start(lambda *_: ran.append(None))
    assert ran == [None]


def test_what_changes_in_a_run_s_configuration_is_told(start, tmp_path, capsys):
    start(lambda *_: None)
    start(lambda *_: None)
    assert capsys.readouterr().err == ""
    start(lambda *_: None, "loop.steps=2000", "mesh.fsdp=4")
    path = tmp_path / "run" / "training.json"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{path}: loop.steps was {LoopConfig().steps}, is 2000 from here on",
        f"{path}: mesh.fsdp was {MeshConfig().fsdp}, is 4 from here on",
    ]
    assert json.loads(path.read_text())["loop"]["steps"] == 2000


@pytest.mark.parametrize("steps", [19, 17, 1])
def test_a_run_that_is_past_its_steps_says_so_and_changes_nothing(start, tmp_path, capsys, steps):
    start(lambda *_: None, "loop.steps=20")
    for step in (15, 20):
        (tmp_path / "run" / "checkpoints" / str(step)).mkdir(parents=True)
    before = {path: path.is_file() and path.read_bytes() for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(SystemExit) as ended:
        start(lambda *_: pytest.fail("trained"), f"loop.steps={steps}")
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1
    assert f"run: the run is at step 20, loop.steps is {steps}; nothing is changed" in told
    assert {path: path.is_file() and path.read_bytes() for path in (tmp_path / "run").rglob("*")} == before
    ran = []
    start(lambda *_: ran.append(None), "loop.steps=20")  # the steps that it has: nothing to do, and no error
    assert ran == [None]


def test_a_folder_that_cannot_be_made(start, tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(SystemExit) as ended:
        start(lambda *_: pytest.fail("no folder"))
    assert ended.value.code == 2 and "run: cannot be written" in capsys.readouterr().err


def test_other_errors_of_a_training_stay_what_they_are(start):
    def train(*_):
        raise OSError("of the training")

    with pytest.raises(OSError, match="of the training"):
        start(train)


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"output": "gs://bucket/runs/llm"}, "--output", "gs://bucket/runs/llm"),
        ({"output": Path("gs://bucket/runs/llm")}, "--output", "gs://bucket/runs/llm"),
        ("init_from=gs://bucket/llm", "config.yaml: init_from", "gs://bucket/llm"),
        ("tokens=s3://bucket/tokens", "config.yaml: tokens", "s3://bucket/tokens"),
        ("tokens=[{path: a}, {path: gs://b}]", "config.yaml: tokens.1.path", "gs://b"),
    ],
)
def test_addresses_are_no_paths(start, tmp_path, capsys, monkeypatch, given, name, value):
    monkeypatch.chdir(tmp_path)
    train = lambda *_: pytest.fail("nothing to write to or to read from")  # noqa: E731
    with pytest.raises(SystemExit) as ended:
        start(train, **given) if isinstance(given, dict) else start(train, given)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"{name} is {value}, expected a path of a disk that is mounted here\n")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_run_of_before_is_gone_on_with(start, tmp_path, capsys):
    """Its settings were in config.json, which stays until the run writes parts."""
    (tmp_path / "run").mkdir()
    start(lambda *_: None)
    settings = json.loads((tmp_path / "run" / "training.json").read_text())
    settings["loop"]["steps"] = 7
    (tmp_path / "run" / "training.json").unlink()
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    start(lambda *_: None)
    path = tmp_path / "run" / "training.json"
    assert capsys.readouterr().err == f"{path}: loop.steps was 7, is {LoopConfig().steps} from here on\n"
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == settings
    start(lambda *_: None, "loop.steps=8")  # from then on training.json has them
    assert "loop.steps was 1000, is 8" in capsys.readouterr().err


def test_where_the_system_has_no_such_locks_runs_go_without(start, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # an import of it fails
    ran = []
    start(lambda *_: start(lambda *_: ran.append(None)))
    assert ran == [None]


@pytest.fixture
def one_of_two(monkeypatch):
    """Process 0 of two, as far as JAX's count goes; what is changed in JAX's configuration is undone."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(launch.jax, "process_count", lambda: 2)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_several_processes_share_a_compilation_cache(start, one_of_two, tmp_path):
    found = []
    start(lambda *_: found.append(jax.config.jax_compilation_cache_dir))
    assert found == [str(tmp_path / "run" / "compilation_cache")]
    jax.config.update("jax_compilation_cache_dir", "mine")  # as JAX_COMPILATION_CACHE_DIR does
    start(lambda *_: found.append(jax.config.jax_compilation_cache_dir))
    assert found[1] == "mine"


@pytest.mark.parametrize(
    ("error", "code", "lost"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), 1, False),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Connection reset by peer"), 1, True),
        (KeyboardInterrupt(), 130, False),
    ],
)
def test_what_ends_one_of_several_processes(start, one_of_two, capsys, error, code, lost):
    def train(*_):
        raise error

    with pytest.raises(SystemExit) as ended:
        start(train)
    told = capsys.readouterr().err
    assert ended.value.code == code
    assert ("another process has ended" in told) == lost
    assert ("Traceback" in told) == ("RESOURCE" in str(error))
