"""Workers of a Ray cluster: each is an actor that keeps its compiled model warm and has accelerators of its own.

Ray holds no truth: what is done stands in the output folder, which all hosts mount under the same path. Workers that
die are replaced; where the head dies the command ends, and the same command goes on. The one module that imports Ray.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spark_jax.errors import SparkError, one_line
from spark_jax.jobs.attempt import Tally
from spark_jax.jobs.progress import Progress
from spark_jax.jobs.run import Outcome, describe
from spark_jax.jobs.shards import Shard
from spark_jax.jobs.thread_warnings import collecting
from spark_jax.jobs.worker import Worker, WorkerSettings
from spark_jax.shared.extra import needs_extra

MAX_FAILED_STARTS = 3  # of workers, one after the other, none of which came to work
PATIENCE = 60.0  # seconds after which the wait for a first worker is told
_OBJECT_STORE = 128 << 20  # bytes, of a cluster that is started here: nothing but shards' numbers goes through it


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the workers are, and what each has.

    Attributes:
      address: of the cluster; None: that of RAY_ADDRESS, without one a cluster is started here.
      workers: how many; None: as many as the cluster has room for.
      gpus: of each; None: one where the cluster has GPUs.
      tpus: chips of each; None: all of a host where the cluster has TPUs.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None
    tpus: int | None = None


def resources(nodes: Sequence[Mapping[str, float]], cluster: Cluster) -> tuple[int, dict[str, float]]:
    """Returns how many workers there are, and which accelerators each takes.

    Args:
      nodes: resources of each node.
      cluster: what was asked for.
    """
    wanted = {"TPU": cluster.tpus, "GPU": cluster.gpus}
    if cluster.tpus is None and not cluster.gpus:
        wanted["TPU"] = min((node["TPU"] for node in nodes if node.get("TPU")), default=0)
    if cluster.gpus is None and not wanted["TPU"]:
        wanted["GPU"] = 1 if any(node.get("GPU") for node in nodes) else 0
    taken = {name: count for name, count in wanted.items() if count}
    rooms = (min(node.get(name, 0) // count for name, count in taken.items()) for node in nodes)
    # A CPU worker computes on all cores of its host.
    count = int(sum(rooms)) if taken else sum(node.get("CPU", 0) >= 1 for node in nodes)
    return cluster.workers or max(count, 1), taken


@contextlib.contextmanager
def ray_pool(settings: WorkerSettings, progress: Progress, cluster: Cluster) -> Iterator["RayPool"]:
    """Joins the cluster, or starts one, and lets workers load the model.

    Raises:
      SparkError: Ray is not installed, no cluster is at the address, it is lost, or no worker comes to work.
    """
    with needs_extra("ray"):
        import ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise SparkError(f"--ray-address {address}: no Ray cluster answers ({one_line(error, 200)})") from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield RayPool(ray, settings, progress, *resources(nodes, cluster))
    finally:
        ray.shutdown()


@dataclasses.dataclass(eq=False)
class _Seat:
    """An actor, and the numbers of the shards that it has."""

    actor: Any
    ready: bool = False
    running: set[int] = dataclasses.field(default_factory=set)


class _Speaker:
    """The actor. The model is loaded by a call, so that an error of it reaches the driver as it is."""

    def __init__(self, settings: WorkerSettings):
        self._settings = settings
        collecting().__enter__()  # for as long as the process lives

    def load(self) -> None:
        self._worker = Worker(self._settings)

    def speak(self, shard: Shard) -> Tally:
        return self._worker.speak(shard)


class RayPool:
    """The workers of a cluster."""

    def __init__(
        self, ray: Any, settings: WorkerSettings, progress: Progress, workers: int, accelerators: Mapping[str, float]
    ):
        """Asks for the workers; they come when there is room.

        Args:
          ray: the module.
          settings: of the workers.
          progress: is told of every shard.
          workers: how many.
          accelerators: that each takes, "GPU" and "TPU".
        """
        self._ray, self._settings, self._progress, self._accelerators = ray, settings, progress, dict(accelerators)
        self._actor = ray.remote(
            num_cpus=1,
            num_gpus=accelerators.get("GPU", 0),
            resources={name: count for name, count in accelerators.items() if name != "GPU"},
            max_concurrency=settings.together + 1,
            scheduling_strategy="SPREAD",
        )(_Speaker)
        self._seats: list[_Seat] = []
        self._calls: dict[Any, tuple[_Seat, Shard | None]] = {}  # by reference; None: it loads the model
        self._failed_starts, self._waited = 0, False
        for _ in range(workers):
            self._ask()

    def seats(self) -> list[_Seat]:
        """Returns the workers that have loaded the model."""
        return [seat for seat in self._seats if seat.ready]

    def give(self, seat: _Seat, shard: Shard) -> None:
        """Lets a worker begin with a shard."""
        seat.running.add(shard.number)
        self._progress.begin(shard.number)
        self._calls[seat.actor.speak.remote(shard)] = (seat, shard)

    def wait(self) -> list[Outcome]:
        """Waits until something has changed, and returns which shards have ended."""
        try:
            ended, _ = self._ray.wait(list(self._calls), timeout=PATIENCE)
        except self._ray.exceptions.RayError as error:
            reason = one_line(error, 200)
            raise SparkError(f"the Ray cluster is lost ({reason}); the same command goes on") from error
        if not ended and not self.seats() and not self._waited:
            self._waited = True
            wanted = ", ".join(f"{count:g} {name}" for name, count in {"CPU": 1, **self._accelerators}.items())
            self._progress.say(f"waiting for a worker: no node of the cluster has {wanted} free yet")
        return [outcome for call in ended if (outcome := self._outcome(call)) is not None]

    def _ask(self) -> None:
        seat = _Seat(self._actor.remote(self._settings))
        self._seats.append(seat)
        self._calls[seat.actor.load.remote()] = (seat, None)

    def _outcome(self, call: Any) -> Outcome | None:
        """Returns what became of a shard; None: of a load."""
        seat, shard = self._calls.pop(call)
        failure, result = None, None
        try:
            result = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            failure = error.cause  # of this shard: the worker goes on
        except self._ray.exceptions.RayError as error:
            failure = error  # of the worker
            self._replace(seat)
        if shard is None:
            self._started(seat, failure)
            return None
        seat.running.discard(shard.number)
        if failure is None:
            self._progress.add(shard.number, result)
        return Outcome(shard, None if failure is None else describe(failure))

    def _started(self, seat: _Seat, failure: BaseException | None) -> None:
        if failure is None:
            seat.ready, self._failed_starts = True, 0
            return
        if isinstance(failure, SparkError):
            raise SparkError(f"a worker: {failure}") from failure
        self._replace(seat)
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS and not self.seats():
            raise SparkError(f"no worker comes to work ({describe(failure)})") from failure

    def _replace(self, seat: _Seat) -> None:
        """Asks for another worker in the place of one that is gone or out of reach."""
        if seat not in self._seats:  # another call of it has told
            return
        self._seats.remove(seat)
        with contextlib.suppress(Exception):
            self._ray.kill(seat.actor)
        self._ask()
