"""One run in several processes: how they find each other, who writes, and when all of them stop.

A run of several processes is the same program started once a host (TPU), a GPU (SLURM), or as often as one likes (CPU):
docs/training.md has the commands. All processes see the same files and write into one output folder.
"""

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from spark_jax.errors import SparkError, one_line

HEARTBEAT_SECONDS = 60  # a process that is not heard of for so long ends the others
_START_SECONDS = 300


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Joins the other processes of the run; does nothing where there are none. Before any other use of JAX.

    Args:
      coordinator: HOST:PORT of process 0; None: SLURM and TPU pods are recognized, else the run has one process.
      num_processes, process_id: with `coordinator`; the processes are numbered from 0.
      heartbeat_seconds: after this silence a process counts as dead, and the others end.

    Raises:
      SparkError: only some of the three are given, they do not fit each other, or the others do not come.
    """
    flags = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [flag for flag, value in flags.items() if value is None]
    if 0 < len(missing) < 3:
        given = [flag for flag in flags if flag not in missing]
        raise SparkError(f"{' and '.join(missing)}: missing, expected with {' and '.join(given)}")
    given = {}
    if not missing:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise SparkError(f"--coordinator {coordinator}: expected HOST:PORT")
        if not 0 <= process_id < num_processes:
            raise SparkError(f"--process-id {process_id}: expected 0 to {num_processes - 1} (--num-processes)")
        given = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    elif cluster(os.environ) is None:
        return
    # JAX's own answer to SIGTERM would take the signal from `StopSignals`, and from a process that still starts.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **given, heartbeat_timeout_seconds=heartbeat_seconds, initialization_timeout=_START_SECONDS
        )
    except (RuntimeError, ValueError, OSError) as error:  # OSError: of the TPU's metadata server
        raise SparkError(f"the processes of the run did not find each other ({one_line(error, 300)})") from error


def cluster(environ: Mapping[str, str]) -> str | None:
    """What has started this process as one of several, "slurm" or "tpu", by its environment; None: nothing.

    Of SLURM those that srun has started: a batch script's own process has a number too. Kubernetes names the hosts of a
    TPU slice; elsewhere `jax.distributed` asks the TPU's metadata server whether the host is one of several.
    """
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environ:
        return "slurm"
    if environ.get("JAX_PLATFORMS", "") == "cpu":
        return None
    hosts = [environ[name] for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES") if name in environ]
    if hosts:
        return "tpu" if "," in hosts[0] or int(environ.get("MEGASCALE_NUM_SLICES", 1)) > 1 else None
    # JAX sets TPU_SKIP_MDS_QUERY itself where there are no chips; Kubernetes too, beside the names of the hosts.
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    asked = "TPU_SKIP_MDS_QUERY" not in environ and importlib.util.find_spec("libtpu") is not None
    return "tpu" if chips and asked else None


def is_primary() -> bool:
    """Whether this process writes metrics, log lines and the configuration: process 0."""
    return jax.process_index() == 0


def log(text: str) -> None:
    """A line on stderr, once a run."""
    if is_primary():
        print(text, file=sys.stderr, flush=True)


def all_processes(flag: bool) -> bool:
    """Whether the flag is set on every process. All must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


def broadcast_from_primary(numbers: Sequence[int]) -> list[int]:
    """The numbers that process 0 has, on every process. All must ask."""
    if jax.process_count() == 1:
        return list(numbers)
    count = int(multihost_utils.broadcast_one_to_all(np.asarray(len(numbers), np.int32)))
    own = np.asarray(numbers if is_primary() else [0] * count, np.int32)
    return multihost_utils.broadcast_one_to_all(own).tolist() if count else []


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class StopSignals:
    """SIGTERM and SIGINT as a question that all processes answer alike at the same step.

    A signal reaches the processes at different steps, or only one of them. At every step they start a reduction of
    "I was asked to stop" over all of them and look at the result of the one before, which is long there: nobody waits,
    and all see the same, two steps after a signal at the latest.
    """

    def __init__(self, requested: threading.Event):
        self._requested, self._pending = requested, None
        if jax.process_count() > 1:
            mesh = process_mesh(jax.devices())
            self._sharding = NamedSharding(mesh, jax.P("process"))
            self._any = jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(mesh, jax.P()))

    def agreed(self) -> bool:
        """Whether to stop before another step; every process asks at every step."""
        if jax.process_count() == 1:
            return self._requested.is_set()
        before, mine = self._pending, np.asarray([self._requested.is_set()], np.int32)
        self._pending = self._any(jax.make_array_from_process_local_data(self._sharding, mine))
        return before is not None and bool(jax.device_get(before))


def process_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """All devices, a row for each process.

    Not by jax.make_mesh, which wants rows and columns to follow a TPU's interconnect, as processes need not; and all
    of them, since TPUs compute in whole slices.
    """
    rows: dict[int, list[jax.Device]] = {}
    for device in devices:
        rows.setdefault(device.process_index, []).append(device)
    return Mesh(np.array([rows[i] for i in sorted(rows)]), ("process", "device"), axis_types=(AxisType.Auto,) * 2)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Notes SIGTERM and SIGINT in place of their effect; a second one has its usual effect. Main thread only."""
    requested = threading.Event()
    previous = {}

    def note(number, frame):
        requested.set()
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, note) or signal.SIG_DFL
    try:
        yield StopSignals(requested)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
