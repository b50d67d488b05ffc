"""Checkpoints of runs: asynchronous, on any mesh, the newest and the best, whole or told."""

import asyncio
import json
import os
import resource
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from spark_jax import sharding
from spark_jax.data import pipeline
from spark_jax.errors import SparkError
from spark_jax.training import checkpoint
from spark_jax.training.checkpoint import Checkpoints, abstract
from spark_jax.training.checksum import checksums

# Orbax gives a damaged checkpoint up at its first error; a task of it that ends later finds its event loop closed.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")

SHAPES = {"kernel": (64, 16), "bias": (16,), "table": (8, 8, 8), "count": ()}


def make_state(seed, mesh=None):
    """Arrays of the kinds that a state has, over fsdp and tensor."""
    mesh = sharding.make_mesh(2, 2, 2) if mesh is None else mesh
    rng = np.random.default_rng(seed)
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    state |= {"count": np.int32(seed), "half": rng.standard_normal((8, 4)).astype(jnp.bfloat16)}
    return jax.device_put(state, places(mesh))


def places(mesh):
    specs = {"kernel": ("fsdp", "tensor"), "bias": ("tensor",), "table": (None, "fsdp"), "count": (), "half": ()}
    return {name: NamedSharding(mesh, jax.P(*spec)) for name, spec in specs.items()}


def make_data():
    def load(indices, rngs):
        return {"x": np.array([index + rng.random() for index, rng in zip(indices, rngs, strict=True)])}

    return pipeline.batches(pipeline.shuffled_plan(20, 4, 0), load, 50, seed=0)


def wanted(mesh=None):
    mesh = sharding.make_mesh(2, 2, 2) if mesh is None else mesh
    return abstract(make_state(0, mesh), places(mesh))


def write(directory, steps, **settings):
    """Checkpoints of `steps`, state s at step s after s batches; the batch that comes next at each."""
    data, following = make_data(), {}
    checkpoints = Checkpoints(directory, keep=10, **settings)
    for step in range(1, max(steps) + 2):
        batch = next(data)["x"]
        if step - 1 in steps:
            following[step - 1] = batch
        if step in steps:
            checkpoints.save(step, make_state(step), data)
    checkpoints.close()
    return following


def assert_restores(directory, step, following):
    checkpoints, data = Checkpoints(directory, keep=10), make_data()
    state = checkpoints.restore(wanted(), data)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(make_state(step)))
    np.testing.assert_array_equal(next(data)["x"], following[step])
    return checkpoints


class HeldUp:
    """A data iterator whose position is not written before it is let go."""

    def __init__(self):
        self.go = threading.Event()

    async def save(self, directory):
        async def write():
            folder = await directory.await_creation()
            await asyncio.to_thread(self.go.wait)
            (folder / "process_0-of-1.json").write_text("{}")

        return write()

    def set_state(self, state):
        assert state == {}


def test_a_donated_state_is_saved_as_it_was_while_steps_go_on(tmp_path):
    data, checkpoints = HeldUp(), Checkpoints(tmp_path / "checkpoints")
    state = make_state(3)
    before = jax.tree.map(np.array, state)  # copies
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2 + 1, tree), donate_argnums=0)
    checkpoints.save(3, state, data)
    try:
        for i in range(5):
            donated, state = state, step(state)
            # On CPU Orbax may hold a view of the saved arrays in place of a copy: JAX then does not give them away.
            assert i == 0 or all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
        jax.block_until_ready(state)
        assert not (tmp_path / "checkpoints" / "3").exists()  # five steps were made, and the save is not complete
    finally:
        data.go.set()
        checkpoints.close()
    restored = Checkpoints(tmp_path / "checkpoints").restore(wanted(), data)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), before)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 2, 4), (1, 1, 1)])
def test_a_checkpoint_of_one_mesh_is_read_on_another(tmp_path, sizes):
    saved = make_state(1)
    write(tmp_path, [1])
    mesh = sharding.make_mesh(*sizes)
    restored = Checkpoints(tmp_path).restore(wanted(mesh), make_data())
    assert {name: leaf.sharding for name, leaf in restored.items()} == places(mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(saved))
    assert checksums(restored) == checksums(saved)


def test_checksums_notice_a_bit_and_a_place():
    mesh = sharding.make_mesh(1, 2, 4)
    state = make_state(1, mesh)
    known = checksums(state)
    kernel = np.array(state["kernel"])
    flipped = kernel.copy()
    flipped.view(np.uint32)[5, 3] ^= 1
    swapped = kernel.copy()
    swapped[[3, 60]] = kernel[[60, 3]]
    for changed in (flipped, swapped):
        found = checksums(state | {"kernel": jax.device_put(changed, state["kernel"].sharding)})
        assert [name for name in known if found[name] != known[name]] == ["kernel"]


def test_the_newest_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=2)
    assert checkpoints.best is None and checkpoints.would_keep({"loss": 9.0})
    for step, loss in enumerate([3.0, 1.0, float("nan"), 2.0, None, 5.0, 4.0], 1):
        assert loss is None or checkpoints.would_keep({"loss": loss}) == (step in (1, 2, 4))
        checkpoints.save(step, make_state(step), make_data(), None if loss is None else {"loss": loss, "other": 0})
    checkpoints.wait()
    assert checkpoints.steps == [2, 4, 7] and checkpoints.best == (2, 1.0)
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=1, keep_best=2)  # the metrics are stored
    assert again.best == (2, 1.0) and again.would_keep({"loss": 1.5}) and not again.would_keep({"loss": 2.5})
    again.close()


def data_files(folder):
    """Where the arrays' values lie."""
    return [path for path in (folder / "state").rglob("*") if path.is_file() and path.parent.name == "d"]


def overwrite(path, content):
    path.write_bytes(content)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGE = {
    "values truncated": lambda folder: [os.truncate(path, path.stat().st_size // 2) for path in data_files(folder)],
    "values empty": lambda folder: [overwrite(path, b"") for path in data_files(folder)],
    "values zeroed": lambda folder: [overwrite(path, bytes(path.stat().st_size)) for path in data_files(folder)],
    "a bit of the values": lambda folder: [flip(path) for path in data_files(folder)],
    "values deleted": lambda folder: shutil.rmtree(folder / "state" / "d"),
    "index deleted": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "index garbled": lambda folder: flip(folder / "state" / "manifest.ocdbt"),
    "tree deleted": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "tree garbled": lambda folder: overwrite(folder / "state" / "_METADATA", b"{\x00"),
    "state deleted": lambda folder: shutil.rmtree(folder / "state"),
    "description deleted": lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
    "description garbled": lambda folder: overwrite(folder / "_CHECKPOINT_METADATA", b"\xff{"),
    "all deleted": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return folder, write(folder / "checkpoints", [2, 4, 6])


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(three, tmp_path, capsys, kind):
    source, following = three
    folder = shutil.copytree(source / "checkpoints", tmp_path / "checkpoints")
    DAMAGE[kind](folder / "6")
    checkpoints = assert_restores(folder, 4, following)
    log = capsys.readouterr().err
    assert f"{folder}/6: damaged checkpoint" in log and f"going on from {folder}/4" in log and log.count("\n") == 1
    assert checkpoints.steps == [2, 4] and (tmp_path / "damaged" / "6").is_dir()
    checkpoints.save(6, make_state(6), make_data())  # its step is free
    checkpoints.close()


OTHER = {
    "position deleted": lambda folder: shutil.rmtree(folder / "data"),
    "positions deleted": lambda folder: [path.unlink() for path in (folder / "data").iterdir()],
    "position garbled": lambda folder: overwrite(next((folder / "data").glob("process_*")), b"{"),
    "position empty": lambda folder: overwrite(next((folder / "data").glob("process_*")), b""),
    "position of another format": lambda folder: overwrite(next((folder / "data").glob("process_*")), b'{"a": 1}'),
    "position a number": lambda folder: overwrite(next((folder / "data").glob("process_*")), b"7"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_a_position_that_cannot_be_read_moves_nothing(three, tmp_path, capsys, kind):
    """The arrays beside it are whole."""
    source, _ = three
    folder = shutil.copytree(source / "checkpoints", tmp_path / "checkpoints")
    OTHER[kind](folder / "6")
    checkpoints = Checkpoints(folder, keep=10)
    with pytest.raises(SparkError, match=f"{folder}/6/data: the data cannot go on from this position .*whole") as told:
        checkpoints.restore(wanted(), make_data())
    checkpoints.close()
    assert "\n" not in str(told.value) and "damaged" not in str(told.value) + capsys.readouterr().err
    assert sorted(os.listdir(folder)) == ["2", "4", "6"] and os.listdir(tmp_path) == ["checkpoints"]


def test_a_position_beyond_the_data_moves_nothing(three, tmp_path):
    source, _ = three
    folder = shutil.copytree(source / "checkpoints", tmp_path / "checkpoints")
    plan = pipeline.shuffled_plan(20, 4, 0)
    short = pipeline.batches(plan, lambda indices, rngs: {"x": indices}, 3, seed=0)
    checkpoints = Checkpoints(folder, keep=10)
    with pytest.raises(SparkError, match="the data cannot go on from this position"):
        checkpoints.restore(wanted(), short)
    checkpoints.close()
    assert sorted(os.listdir(folder)) == ["2", "4", "6"] and os.listdir(tmp_path) == ["checkpoints"]


NO_DAMAGE = [
    PermissionError(13, "Permission denied"),
    ValueError("PERMISSION_DENIED: Error opening /x/manifest.ocdbt"),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes"),
    OSError(5, "Input/output error"),
    MemoryError(),
    TimeoutError("too late"),
]


@pytest.mark.parametrize("error", NO_DAMAGE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["metadata", "load_checkpointables"])
def test_what_is_no_damage_moves_nothing(three, tmp_path, monkeypatch, error, call):
    source, following = three
    folder = shutil.copytree(source / "checkpoints", tmp_path / "checkpoints")

    def fails(*arguments, **more):
        raise error

    checkpoints = Checkpoints(folder, keep=10)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.ocp, call, fails)
        with pytest.raises(SparkError, match=f"{folder}/6: checkpoint cannot be read .*; nothing is moved") as told:
            checkpoints.restore(wanted(), make_data())
    checkpoints.close()
    assert "\n" not in str(told.value) and os.listdir(tmp_path) == ["checkpoints"]
    assert_restores(folder, 6, following).close()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "metrics"])
def test_descriptions_that_may_not_be_read_move_nothing(tmp_path, monkeypatch, name):
    folder, read = tmp_path / "checkpoints", Path.read_text
    checkpoints = Checkpoints(folder, keep_best=1)
    checkpoints.save(2, make_state(2), make_data(), {"loss": 1.0})
    checkpoints.close()

    def refused(path, *arguments, **more):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(SparkError, match=r"cannot be read \(.*Permission denied.*\); nothing is moved"):
        Checkpoints(folder)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["checkpoints"] and "2" in os.listdir(folder)
    next((folder / "2").glob("metrics/metrics")).write_text("{")
    with pytest.raises(SparkError, match="metrics: the metrics cannot be read .*nothing is moved, remove .*metrics to"):
        Checkpoints(folder)
    shutil.rmtree(folder / "2" / "metrics")
    assert Checkpoints(folder).steps == [2]


def test_a_run_that_is_past_its_steps_is_left_alone(three, tmp_path):
    source, _ = three
    shutil.copytree(source / "checkpoints", tmp_path / "checkpoints")
    for steps in (6, 7):
        checkpoint.check_not_past(tmp_path, steps)
    for steps in (5, 1, 0):
        with pytest.raises(SparkError, match=f"{tmp_path}: the run is at step 6, loop.steps is {steps}; nothing is"):
            checkpoint.check_not_past(tmp_path, steps)
    checkpoint.check_not_past(tmp_path / "new", 1)


def test_two_damaged_checkpoints_and_all(three, tmp_path, capsys):
    source, following = three
    folder = shutil.copytree(source / "checkpoints", tmp_path / "checkpoints")
    DAMAGE["description garbled"](folder / "6")
    DAMAGE["values zeroed"](folder / "4")
    assert_restores(folder, 2, following).close()
    assert capsys.readouterr().err.count(f"going on from {folder}/2\n") == 2
    DAMAGE["values empty"](folder / "2")
    with pytest.raises(SparkError, match="all checkpoints are damaged, move the folder away to begin anew .*2: "):
        Checkpoints(folder).restore(wanted(), make_data())
    DAMAGE["description deleted"](folder / "2")
    with pytest.raises(SparkError, match=r"all checkpoints are damaged, .* \(no description of \[2\] can be read\)"):
        Checkpoints(folder)
    assert (folder / "2").is_dir()  # nothing is moved where nothing is left to go on from


def test_a_save_without_room_is_told_and_the_one_before_stays(tmp_path):
    """The limit on file sizes makes every write beyond it fail, as a full disk does."""
    following = write(tmp_path, [1])
    checkpoints = Checkpoints(tmp_path)
    mesh = sharding.make_mesh(1)
    large = jax.device_put(np.random.default_rng(0).random((512, 512), np.float32), sharding.replicated(mesh))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        checkpoints.save(2, {"large": large}, make_data())
        with pytest.raises(SparkError, match=rf"{tmp_path}/2: checkpoint cannot be written \(.*File too large") as told:
            checkpoints.save(3, make_state(3), make_data())  # the next save tells
        assert "\n" not in str(told.value)
        checkpoints.save(4, {"large": large}, make_data())
        with pytest.raises(SparkError, match=f"{tmp_path}/4: checkpoint cannot be written"):
            checkpoints.close()  # so does the end
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "2" not in os.listdir(tmp_path)
    checkpoints = assert_restores(tmp_path, 1, following)
    checkpoints.save(2, make_state(2), make_data())
    checkpoints.close()
    # What was left of the broken saves is gone: a thread removes it, and the next save waits for that.
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_the_position_is_read_by_another_number_of_processes(tmp_path):
    following = write(tmp_path, [2])
    position = next((tmp_path / "2" / "data").glob("process_*"))
    assert json.loads(position.read_text())
    for index in range(2):
        shutil.copy(position, position.with_name(f"process_{index}-of-2.json"))
    position.unlink()
    assert_restores(tmp_path, 2, following).close()
