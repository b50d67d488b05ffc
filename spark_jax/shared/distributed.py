"""Runs of several processes: how they find each other, which one writes, and when all of them stop.

The same program is started once per host (TPU), once per GPU (SLURM), or any number of times (CPU); docs/training.md
has the commands. All processes see the same files and write into one output directory.
"""

import importlib.util
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from spark_jax.errors import SparkError, one_line

HEARTBEAT_SECONDS = 60  # a process that is silent for longer counts as dead
_START_SECONDS = 300


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Joins the other processes of the run, before any other use of JAX; does nothing if there are none.

    Args:
      coordinator: HOST:PORT of process 0; None: SLURM and TPU pods are recognized, else the run has one process.
      num_processes: number of processes, given together with `coordinator`.
      process_id: number of this process, from 0, given together with `coordinator`.
      heartbeat_seconds: a process that is silent for longer counts as dead, and the others end.

    Raises:
      SparkError: only some of the three are given, they do not fit each other, or the other processes do not answer.
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
    # JAX's own handler would take SIGTERM from `StopSignals`, and from a process that is still starting.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **given, heartbeat_timeout_seconds=heartbeat_seconds, initialization_timeout=_START_SECONDS
        )
    except (RuntimeError, ValueError, OSError) as error:  # OSError: of the TPU's metadata server
        raise SparkError(f"the processes of the run did not find each other ({one_line(error, 300)})") from error


def cluster(environ: Mapping[str, str]) -> str | None:
    """Returns what started this process as one of several, "slurm" or "tpu", by its environment; None: nothing.

    SLURM counts only for processes that srun started, because a batch script's own process also has a number.
    Kubernetes names the hosts of a TPU slice; elsewhere `jax.distributed` asks the TPU's metadata server whether the
    host is one of several.
    """
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environ:
        return "slurm"
    if environ.get("JAX_PLATFORMS", "") == "cpu":
        return None
    hosts = [environ[name] for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES") if name in environ]
    if hosts:
        return "tpu" if "," in hosts[0] or int(environ.get("MEGASCALE_NUM_SLICES", 1)) > 1 else None
    # JAX sets TPU_SKIP_MDS_QUERY itself where there are no chips; Kubernetes sets it beside the names of the hosts.
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    asked = "TPU_SKIP_MDS_QUERY" not in environ and importlib.util.find_spec("libtpu") is not None
    return "tpu" if chips and asked else None


def is_primary() -> bool:
    """Returns whether this is process 0, which writes metrics, log lines, and the configuration."""
    return jax.process_index() == 0


def log(text: str) -> None:
    """Prints a line to stderr, once for all processes."""
    if is_primary():
        print(text, file=sys.stderr, flush=True)


def all_processes(flag: bool) -> bool:
    """Returns whether the flag is set on every process; all processes must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


def broadcast_from_primary(numbers: Sequence[int]) -> list[int]:
    """Returns the numbers of process 0 on every process; all processes must call it."""
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
    """Tells all processes at the same step whether one of them got SIGTERM or SIGINT.

    A signal reaches the processes at different steps, or only one of them. At every step they start a reduction of
    "I was asked to stop" over all processes and read the result of the previous one, which has long been complete: no
    process waits, and all see the same result, at most two steps after a signal.
    """

    def __init__(self, requested: threading.Event):
        self._requested, self._pending = requested, None
        if jax.process_count() > 1:
            mesh = process_mesh(jax.devices())
            self._sharding = NamedSharding(mesh, jax.P("process"))
            self._any = jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(mesh, jax.P()))

    def agreed(self) -> bool:
        """Returns whether to stop before the next step; every process must call it at every step."""
        if jax.process_count() == 1:
            return self._requested.is_set()
        before, mine = self._pending, np.asarray([self._requested.is_set()], np.int32)
        self._pending = self._any(jax.make_array_from_process_local_data(self._sharding, mine))
        return before is not None and bool(jax.device_get(before))


def process_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Returns a mesh of all devices with a row for each process.

    `jax.make_mesh` does not serve: it wants rows and columns to follow a TPU's interconnect, which processes need not
    do. The mesh has all devices because TPUs compute in whole slices.
    """
    rows: dict[int, list[jax.Device]] = {}
    for device in devices:
        rows.setdefault(device.process_index, []).append(device)
    return Mesh(np.array([rows[i] for i in sorted(rows)]), ("process", "device"), axis_types=(AxisType.Auto,) * 2)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Records SIGTERM and SIGINT instead of their usual effect, which a second signal has; only in the main thread."""
    requested = threading.Event()
    previous = {}

    def note(number: int, frame: types.FrameType | None) -> None:
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
