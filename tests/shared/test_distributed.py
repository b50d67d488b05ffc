"""Several processes: how a run is recognized as one of them, which rows each loads, and agreement to stop."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from spark_jax import sharding
from spark_jax.errors import SparkError
from spark_jax.shared import distributed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("localhost:1234", 2, None), "--process-id: missing, expected with --coordinator and --num-processes"),
        ((None, 2, 0), "--coordinator: missing"),
        (("localhost", 2, 0), "--coordinator localhost: expected HOST:PORT"),
        (("localhost:1234", 2, 2), r"--process-id 2: expected 0 to 1 \(--num-processes\)"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(SparkError, match=message):
        distributed.initialize(*flags)


def test_what_started_the_process():
    slurm = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
    assert distributed.cluster(slurm) == "slurm"
    assert distributed.cluster(slurm | {"SLURM_STEP_NUM_TASKS": "1"}) is None  # a shell inside of an allocation
    assert distributed.cluster({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # the batch script itself, no task
    pod = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"}
    assert distributed.cluster(pod) == "tpu"
    assert distributed.cluster(pod | {"JAX_PLATFORMS": "cpu"}) is None
    assert distributed.cluster(pod | {"TPU_SKIP_MDS_QUERY": "true"}) == "tpu"  # Kubernetes
    assert distributed.cluster({"TPU_PROCESS_ADDRESSES": "t0:8476,t1:8476"}) == "tpu"
    assert distributed.cluster(pod | {"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert distributed.cluster(pod | {"TPU_WORKER_HOSTNAMES": "t0", "MEGASCALE_NUM_SLICES": "2"}) == "tpu"
    assert distributed.cluster({}) is None  # a machine without TPUs


def mesh_of(processes, data, fsdp, tensor):
    """A mesh whose devices belong to the given processes."""
    devices = np.array([Mock(process_index=i) for i in processes]).reshape(data, fsdp, tensor)
    return Mock(spec=Mesh, devices=devices, shape={"data": data, "fsdp": fsdp, "tensor": tensor})


def test_rows_of_each_process(monkeypatch):
    def shares(mesh, processes):
        found = []
        for process in range(processes):
            monkeypatch.setattr(sharding.jax, "process_index", lambda process=process: process)
            found.append(sharding.batch_share(mesh))
        return found

    assert shares(mesh_of([0] * 8, 2, 2, 2), 1) == [(0, 1)]
    assert shares(mesh_of([0, 0, 0, 0, 1, 1, 1, 1], 2, 2, 2), 2) == [(0, 2), (1, 2)]
    assert shares(mesh_of([0, 0, 1, 1, 2, 2, 3, 3], 1, 8, 1), 4) == [(i, 4) for i in range(4)]
    # Tensor over processes: these load the same rows.
    assert shares(mesh_of([0, 1, 2, 3], 1, 2, 2), 4) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert shares(mesh_of([0, 1], 1, 1, 2), 2) == [(0, 1), (0, 1)]
    with pytest.raises(SparkError, match="3 processes cannot divide the rows"):
        shares(mesh_of([0, 0, 0, 1, 1, 1, 2, 2], 1, 8, 1), 3)


def test_a_whole_batch_is_put_as_this_process_rows_are():
    mesh = sharding.make_mesh(2, 2, 2)
    batch = {"x": np.arange(24).reshape(8, 3), "n": np.arange(4)}
    whole, own = sharding.put_whole_batch(mesh, batch), sharding.put_batch(mesh, batch)
    for name in batch:
        assert whole[name].sharding == own[name].sharding
        np.testing.assert_array_equal(whole[name], own[name])


@pytest.fixture
def interruptible():
    """SIGINT has Python's effect; a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_asks_and_the_second_acts(interruptible):
    with distributed.stop_signals() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX knows of one TPU chip."""

    id: int
    process_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    slice_index: int = 0

    @property
    def __class__(self):
        """What `isinstance` sees."""
        return jax.Device


def test_a_row_of_the_mesh_is_a_process_wherever_its_chips_are():
    """v5e:4x4: a host has 2 × 2 chips, so that no order by number or by place is that of the processes."""
    places = [(x, y) for y in range(4) for x in range(4)]
    chips = [Chip(i, 2 * (y // 2) + x // 2, (x, y, 0)) for i, (x, y) in enumerate(places)]
    mesh = distributed.process_mesh(chips)
    assert dict(mesh.shape) == {"process": 4, "device": 4} and set(mesh.devices.flat) == set(chips)
    assert [{chip.process_index for chip in row} for row in mesh.devices] == [{0}, {1}, {2}, {3}]


def test_meshes_that_tpus_do_not_have():
    chips = [Chip(i, i // 4, (i % 4, 0, 0), slice_index=i // 4) for i in range(8)]
    with pytest.raises(SparkError, match="data is 1, expected a multiple of the 2 slices"):
        sharding.make_mesh(1, 8, 1, chips)
    with pytest.raises(SparkError, match="mesh .* = .3, 1, 1. does not fit these devices"):
        sharding.make_mesh(3, 1, 1, [Chip(i, 0, (i % 2, i // 2, 0)) for i in range(4)])


def test_chips_without_a_slice_are_of_one():
    class Alone:
        """As a device of a topology: all that a chip has but the slice."""

        __class__ = property(lambda self: jax.Device)

        def __init__(self, chip):
            vars(self).update({name: value for name, value in vars(chip).items() if name != "slice_index"})

    places = [(x, y) for y in range(2) for x in range(4)]
    chips = [Alone(Chip(i, x // 2, (x, y, 0))) for i, (x, y) in enumerate(places)]
    assert dict(sharding.make_mesh(-1, 4, 1, chips).shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.fixture
def topology(monkeypatch):
    """TPUs that are elsewhere, as the TPU compiler knows them."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_MIN_LOG_LEVEL"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    return lambda name, **options: topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def test_rows_of_each_process_on_two_slices(topology, monkeypatch):
    devices = topology("v5e:4x4", num_slices=2)
    processes = len({device.process_index for device in devices})
    for data, fsdp, tensor in ((-1, 1, 1), (-1, 4, 1), (2, 8, 2)):
        mesh = sharding.make_mesh(data, fsdp, tensor, devices)
        for half, own in enumerate(mesh.devices.reshape(2, -1)):
            assert {device.slice_index for device in own} == {half}
        shares = []
        for process in range(processes):
            monkeypatch.setattr(sharding.jax, "process_index", lambda process=process: process)
            shares.append(sharding.batch_share(mesh))
        assert {share for share, _ in shares} == set(range(shares[0][1])), shares


@pytest.mark.parametrize("name", ["v5e:4x4", "v5e:16x16", "v5p:4x4x8", "v6e:8x8"])
def test_meshes_of_one_slice(topology, name):
    devices = topology(name)
    for sizes in ((-1, 1, 1), (-1, 4, 1), (-1, 4, 2)):
        assert sharding.make_mesh(*sizes, devices).size == len(devices)


def test_the_reduction_compiles_for_tpu_slices(topology):
    for name, processes in {"v5e:4x4": 4, "v5p:4x4x8": 32, "v6e:8x8": 16}.items():
        devices = topology(name)
        mesh = distributed.process_mesh(devices)
        assert mesh.shape["process"] == processes
        flags = jax.ShapeDtypeStruct((processes,), np.int32, sharding=jax.NamedSharding(mesh, jax.P("process")))
        whole = jax.jit(lambda x: x.max(), out_shardings=sharding.replicated(mesh)).lower(flags).compile()
        assert whole.as_text().count(" all-reduce(") == 1


TASK = """
import os
import signal
import socket

import jax

from spark_jax.shared import distributed

distributed.initialize()
print(jax.process_index(), jax.process_count(), jax.device_count(), distributed.is_primary())
assert distributed.all_processes(True) and not distributed.all_processes(jax.process_index() == 0)
with distributed.stop_signals() as stop:
    stopped = None
    for step in range(40):
        if stop.agreed():
            stopped = step
            break
        if step == 9 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
print("stopped at", stopped)
"""


@pytest.mark.slow
def test_slurm_is_recognized_and_a_signal_to_one_stops_all_at_one_step():
    """Two tasks as srun would start them on one node."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", TASK],
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
        )
        for i in range(2)
    ]
    outputs = [task.communicate(timeout=120)[0] for task in tasks]
    assert "0 2 4 True" in outputs[0] and "1 2 4 False" in outputs[1]
    assert all("stopped at 11" in output for output in outputs)  # asked at 10, the answer read at 11


RESTORE = """
import sys
from pathlib import Path

import jax
import numpy as np

from spark_jax import sharding
from spark_jax.data import pipeline
from spark_jax.shared import distributed
from spark_jax.training import checkpoint

distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), 20)
folder = Path(sys.argv[3])
mesh = sharding.make_mesh(1, 4, 1)
place = {"a": jax.sharding.NamedSharding(mesh, jax.P("fsdp")), "b": sharding.replicated(mesh)}
host = {"a": np.random.default_rng(0).random((64, 1000), np.float32), "b": np.arange(3.0, dtype=np.float32)}
state = jax.device_put(host, place)
same = lambda ours: jax.tree.map(  # noqa: E731
    lambda x, y: [np.testing.assert_array_equal(s.data, y[s.index]) for s in x.addressable_shards], ours, host
)

data = pipeline.batches(pipeline.shuffled_plan(20, 4, 0), lambda i, rng: {"i": np.asarray(i)}, 50, seed=0)
checkpoints = checkpoint.Checkpoints(folder / "checkpoints", keep=5)
for step in (1, 2):
    next(data)
    checkpoints.save(step, state, data)
checkpoints.close()
position = next(data)["i"]

distributed.barrier("saved")
if distributed.is_primary():  # what only the other one reads
    (folder / "checkpoints" / "2" / "data" / "process_1-of-2.json").write_text("{")
distributed.barrier("damaged")
checkpoints = checkpoint.Checkpoints(folder / "checkpoints", keep=5)
restored = checkpoints.restore(checkpoint.abstract(state, place), data)
same(restored)
assert not np.array_equal(next(data)["i"], position) and checkpoints.steps == [1], checkpoints.steps
np.testing.assert_array_equal(next(data)["i"], position)
checkpoints.save(2, restored, data)
checkpoints.close()
print("went on")
"""


@pytest.mark.slow
def test_both_processes_fall_back_when_one_cannot_read_its_shards(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RESTORE, address, str(i), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    for i, (output, log) in enumerate(outputs):
        assert output.strip().endswith("went on"), log
        assert ("checkpoints/2: damaged checkpoint (damaged for another process)" in log) == (i == 0), log
        assert "WARNING" not in log
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"] and os.listdir(tmp_path / "damaged") == ["2"]
